"""Files of a checkpoint from anywhere: nothing in them is run, and a fault in them is named in a sentence."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from vicur.models import processor as processor_checks
from vicur.models import stored
from vicur.models.checkpoints import read_config, read_model, read_processor, resolve_checkpoint
from vicur.models.load import load_model
from vicur.models.vocabulary import Vocabulary

TINY = Path(resolve_checkpoint("vicur:tiny-student"))


@pytest.fixture
def folder(tmp_path):
    """A checkpoint that a test may change."""
    return Path(shutil.copytree(TINY, tmp_path / "model"))


def change(file: Path, path: tuple[str, ...], value: object) -> None:
    """Set a value in a JSON file; its keys are the path."""
    values = json.loads(file.read_text())
    place = values
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    file.write_text(json.dumps(values))


def change_weights(folder: Path, make) -> None:
    file = folder / "model.safetensors"
    save_file({key: make(key, tensor) for key, tensor in load_file(file).items()}, file, {"format": "pt"})


CODE = """
from pathlib import Path
Path(__file__).with_name("was-run").write_text("")
Path("MARK").write_text("")
"""


@pytest.mark.parametrize("known", [True, False])
def test_code_that_comes_with_a_checkpoint_is_never_run_nor_asked_about(folder, tmp_path, monkeypatch, known):
    mark = tmp_path / "was-run"
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked whether to run code"))
    (folder / "own.py").write_text(CODE.replace("MARK", str(mark)))
    change(
        folder / "config.json", ("auto_map",), {"AutoConfig": "own.C", "AutoModelForImageTextToText": "own.M"}
    )
    change(folder / "processor_config.json", ("auto_map",), {"AutoProcessor": "own.P"})
    for kind in ("image", "video"):
        code = {f"Auto{kind.title()}Processor": "own.I"}
        change(folder / "processor_config.json", (f"{kind}_processor", "auto_map"), code)
    change(folder / "tokenizer_config.json", ("auto_map",), {"AutoTokenizer": ["own.T", None]})
    if known:
        load_model(str(folder))
    else:
        change(folder / "processor_config.json", ("processor_class",), "OwnProcessor")
        change(folder / "tokenizer_config.json", ("tokenizer_class",), "OwnTokenizer")
        with pytest.raises(ValueError, match="it needs code of its own, which is never run"):
            load_model(str(folder))
    assert not mark.exists() and not list(tmp_path.rglob("was-run"))


def test_an_attention_from_elsewhere_has_no_effect(folder):
    for key in ("attn_implementation", "_attn_implementation", "experts_implementation"):
        change(folder / "config.json", (key,), "kernels-community/none")
        change(folder / "config.json", ("text_config", key), "kernels-community/none")
    config = read_model(str(folder)).config
    assert config._attn_implementation == config.text_config._attn_implementation == "sdpa"


@pytest.mark.parametrize("file", ["pytorch_model.bin", "model.pt"])
def test_pickles_are_refused_with_the_way_to_convert_them(folder, file):
    torch.save(load_file(folder / "model.safetensors"), folder / file)
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=f"weights in {file}, a pickle, .* convert it in Python: from"):
        load_model(str(folder))
    (folder / file).unlink()
    with pytest.raises(ValueError, match=r"has no model\.safetensors"):
        load_model(str(folder))


def test_an_adapter_is_no_model(folder):
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "owner/name"}')
    with pytest.raises(ValueError, match="is no whole model: merge the adapter into its base"):
        load_model(str(folder))


@pytest.mark.parametrize("path", [("quantization_config",), ("text_config", "quantization_config")])
def test_quantised_models_are_refused(folder, path):
    change(folder / "config.json", path, {"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(ValueError, match=r"is quantised \(quantization_config"):
        read_config(str(folder))


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.float8_e4m3fn, torch.bool])
def test_weights_that_are_no_plain_floats_are_refused(folder, dtype):
    change_weights(folder, lambda key, tensor: tensor.to(dtype) if "mlp" in key else tensor)
    with pytest.raises(ValueError, match=r"has weights in \w+ \(model\..*mlp.* only models in float32"):
        load_model(str(folder))


@pytest.mark.parametrize(
    "path, value, message",
    [
        (
            ("text_config", "vocab_size"),
            10**12,
            r"embed_tokens\.weight with the shape \[1000000000000, 128\]",
        ),
        (("text_config", "intermediate_size"), 10**12, r"describes .*gate_proj\.weight with the shape"),
        (
            ("text_config", "num_hidden_layers"),
            10**9,
            "num_hidden_layers=1e.09 .* no model has more than 1000",
        ),
        (("text_config", "num_hidden_layers"), 900, r"a model of [\d,]+ parameters, and its weights have"),
        (("vision_config", "depth"), 10**9, "depth=1e.09 .* no model has more than 1000"),
        (("vision_config", "num_position_embeddings"), 10**13, r"pos_embed\.weight with the shape"),
        (("vision_config", "deepstack_visual_indexes"), list(range(10**5)), "100,000 values in deepstack"),
        (("vision_config", "num_heads"), 7, "num_heads=7, which does not divide its hidden_size 96"),
        (("vision_config", "num_heads"), None, "Field 'num_heads' expected int, got NoneType"),
        (("text_config", "rope_parameters", "mrope_section"), [99, 1, 1], "three numbers with the sum 16"),
        (("text_config", "rms_norm_eps"), float("nan"), "has NaN, where a finite number is expected"),
        (("text_config", "to_dict"), 5, "has to_dict in its config.json, which is not a setting"),
        (("to_dict",), 5, "has to_dict in its config.json, which is not a setting"),
        (("model_type",), None, "it names no model_type"),
        (("model_type",), ["qwen3_vl"], "it names no model_type"),
    ],
)
def test_sizes_that_are_not_those_of_the_weights(folder, path, value, message):
    change(folder / "config.json", path, value)
    with pytest.raises(ValueError, match=message):
        load_model(str(folder))


def test_a_weight_that_is_missing_is_named(folder):
    weights = load_file(folder / "model.safetensors")
    weights.pop("model.visual.pos_embed.weight")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights: model\.visual\.pos_embed\.weight"):
        load_model(str(folder))


HEADERS = [
    b"",
    b"\xff" * 8,
    b"\0" * 8,
    (4).to_bytes(8, "little") + b"null",
    (100_000).to_bytes(8, "little") + b"[" * 100_000,
    (80).to_bytes(8, "little")
    + b'{"a": {"dtype": "F32", "shape": [4611686018427387904], "data_offsets": [0, 4]}}  ',
]


@pytest.mark.parametrize("content", HEADERS)
def test_a_damaged_header_is_named(folder, content):
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"its file model\.safetensors is damaged: "):
        load_model(str(folder))


@pytest.mark.parametrize(
    "index",
    ["null", "{}", '{"weight_map": {"a": 5}}', '{"weight_map": {"a": "../model.safetensors"}}', "[" * 10**5],
)
def test_an_index_may_only_name_files_beside_it(folder, index):
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    (folder / "model.safetensors.index.json").write_text(index)
    with pytest.raises(ValueError, match=r"model\.safetensors\.index\.json (must|is n)"):
        load_model(str(folder))


JSON_FILES = ["config.json", "processor_config.json", "tokenizer_config.json", "preprocessor_config.json"]


@pytest.mark.parametrize("file", JSON_FILES)
@pytest.mark.parametrize("text", ["null", "[]", "5", '"x"', "", "{", "[" * 10**5, '{"a": NaN}'])
def test_json_that_is_no_object_is_named(folder, file, text):
    (folder / file).write_text(text)
    with pytest.raises(ValueError, match=r"(processor|configuration) of .* cannot be (read|loaded): "):
        read_processor(str(folder))


@pytest.mark.parametrize("file", ["tokenizer.json", "chat_template.jinja", *JSON_FILES])
def test_a_pipe_or_a_device_is_not_waited_for(folder, file):
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero")):
        (folder / file).unlink(missing_ok=True)
        make(folder / file)
        with pytest.raises(ValueError, match=r"not a regular file|has no config\.json"):
            read_processor(str(folder))


@pytest.mark.parametrize(
    "path, value, message",
    [
        (("image_processor", "patch_size"), 10**9, "its patch_size is 1000000000, and the model's is 8"),
        (("image_processor", "merge_size"), None, "its merge_size is None"),
        (
            ("image_processor", "size"),
            {"shortest_edge": 10**12, "longest_edge": 10**13},
            "enlarges every image",
        ),
        (("image_processor", "size"), {"shortest_edge": 10, "longest_edge": 5}, "not above the second"),
        (("image_processor", "image_mean"), [0.5], "its image_mean must be three numbers"),
        (("image_processor", "image_std"), [0, 0, 0], "its image_std must be three numbers"),
        (("image_processor", "rescale_factor"), 0, "its rescale_factor must be a number above 0"),
        (("image_processor", "resample"), 99, "cannot process an image and a video"),
        (("video_processor", "temporal_patch_size"), [2], r"its temporal_patch_size is \[2\]"),
        (("video_processor",), None, "processor of .* cannot be (used|loaded)"),
    ],
)
def test_a_processor_that_cannot_be_used_is_named(folder, path, value, message):
    change(folder / "processor_config.json", path, value)
    with pytest.raises(ValueError, match=message):
        read_processor(str(folder))


def test_a_placeholder_is_the_same_token_for_model_and_tokenizer(folder):
    change(folder / "config.json", ("image_token_id",), 5)
    with pytest.raises(ValueError, match="the model's image_token_id is 5, which is not the tokenizer's"):
        read_processor(str(folder))


@pytest.mark.parametrize("value", [None, "x", -1, 10**9, [479, "x"], []])
def test_a_response_ends_with_a_token_that_exists(value, base):
    tokenizer = base.processor.tokenizer
    base.model.generation_config.eos_token_id = value
    if value is None:
        assert Vocabulary.of(base.model, base.processor).stop_ids == (tokenizer.eos_token_id,)
        return
    with pytest.raises(ValueError, match=r"eos_token_id in generation_config\.json is"):
        Vocabulary.of(base.model, base.processor)


@pytest.mark.parametrize(
    "template, message",
    [
        ("{{ raise_exception('no') }}", "fails on a question with an image: TemplateError: no"),
        ("{% if %}", "fails on a question with an image: TemplateSyntaxError"),
        ("{{ messages[0].nothing.nothing }}", "fails on a question with an image: UndefinedError"),
        ("{{ ''.__class__.__mro__ }}", "fails on a question with an image: SecurityError"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "fails on a question with an image: Recursion"),
        ("{{ 'a' * 10**10 }}", "takes more than 2 GiB of memory for a short chat"),
        ("{% for i in range(20) %}{{ 'a' * 10**6 }}{% endfor %}", "makes 20,000,000 characters"),
        ("{{ messages[0].content[1].text }}", r"puts <\|image_pad\|> 0 times for the one image"),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "takes more than 0.2 seconds for a short chat",
        ),
        # Only a chat with a system prompt or several turns ends up in the loop.
        (
            "{% if messages|length > 1 %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
            "{% endfor %}{% endif %}<|image_pad|>",
            "takes more than 0.2 seconds for a short chat",
        ),
    ],
)
def test_a_chat_template_that_fails_or_does_not_end(folder, monkeypatch, template, message):
    if "0.2 seconds" in message:
        monkeypatch.setattr(processor_checks, "_SECONDS", 0.2)
    (folder / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match=f"chat template of .* {message}"):
        read_processor(str(folder))


def paths_of(values: object, before: tuple[str, ...] = ()):
    if isinstance(values, dict):
        for key, value in values.items():
            yield (*before, key)
            yield from paths_of(value, (*before, key))


FILES = ["config.json", "processor_config.json", "tokenizer_config.json", "generation_config.json"]
PLACES = [(file, path) for file in FILES for path in paths_of(json.loads((TINY / file).read_text()))]
numbers = st.sampled_from([0, 1, -1, 7, 3.5, 10**12, 10**30, 1e308])
ANY = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=2)
    ),
    max_leaves=4,
)


@given(st.sampled_from(PLACES), ANY)
def test_any_value_anywhere_loads_or_is_refused_in_a_sentence(tmp_path_factory, place, value):
    file, path = place
    folder = tmp_path_factory.getbasetemp() / "any"
    shutil.copytree(TINY, folder, dirs_exist_ok=True)
    change(folder / file, path, value)
    try:
        loaded = load_model(str(folder))
    except ValueError as error:
        assert "\n" not in str(error) and len(str(error)) < 900
        return
    with torch.no_grad():
        loaded.model(torch.tensor([[5, 6]]))


def test_of_a_hub_repository_only_what_is_needed_is_downloaded(monkeypatch):
    asked = []

    def download(name, *, allow_patterns, ignore_patterns):
        asked.append((name, allow_patterns, ignore_patterns))
        return str(TINY)

    stored._downloaded.cache_clear()
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert read_config("owner/name")._name_or_path == "owner/name"
    assert asked == [("owner/name", ["config.json"], ["*/*"])]
    loaded = load_model("owner/name")
    assert loaded.model.config._name_or_path == "owner/name"
    assert asked[1:] == [("owner/name", ["*.json", "*.safetensors", "*.jinja", "merges.txt"], ["*/*"])]
    stored._downloaded.cache_clear()


def test_a_repository_that_cannot_be_downloaded():
    with pytest.raises(
        ValueError,
        match=r"^owner/gone is not a folder, and it cannot be downloaded from the hub: Cannot find ",
    ):
        read_config("owner/gone")


@pytest.mark.parametrize(
    "text, reason",
    [
        (
            "Got: ConnectError: Name or service not known\nAn error.\n",
            "ConnectError: Name or service not known",
        ),
        ("404 Client Error. (Request ID: 1)\n\nRepository Not Found: x.\nPlease", "Repository Not Found: x"),
        ("", "LocalEntryNotFoundError"),
    ],
)
def test_the_reason_of_a_failed_download_is_one_line(monkeypatch, text, reason):
    def download(*names, **options):
        raise LocalEntryNotFoundError(text)

    stored._downloaded.cache_clear()
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(ValueError) as caught:
        read_config("owner/gone")
    assert str(caught.value) == (
        f"owner/gone is not a folder, and it cannot be downloaded from the hub: {reason}."
    )


class PanicException(BaseException):
    """A double of the exception that libraries in Rust raise, which is not an Exception either."""


def test_a_panic_is_the_files_fault_and_an_interrupt_is_not():
    with (
        pytest.raises(ValueError, match=r"^X cannot be read: PanicException: no\.$"),
        stored.refused("X cannot be read"),
    ):
        raise PanicException("no")
    with pytest.raises(KeyboardInterrupt), stored.refused("X cannot be read"):
        raise KeyboardInterrupt
