from __future__ import annotations

import pytest

from vicur.rewards.grader import Grade, Grader, RewardConfig, is_correct

RIGHT, WRONG = Grade(1.0, True), Grade(0.0, False)


@pytest.fixture(scope="module")
def grader():
    grader = Grader(RewardConfig(time_limit=20.0))
    yield grader
    grader.close()


@pytest.mark.parametrize(
    "response, gold, right",
    [
        ("The answer is 7.", "7", True),
        ("The answer is 7.0", "7", True),
        ("The answer is 1,000", "1000", True),
        ("The answer is 17.", "7", False),
        ("\\boxed{$2\\sqrt{221}$}", "2 \\sqrt{221}", True),
        ("nothing", "7", False),
        ("The answer is 2.5 cm", "25 cm", False),
        ("The answer is 1.2\\pi", "12\\pi", False),
        ("The answer is $1.2\\pi$.", "\\boxed{\\frac{6}{5}\\pi}", True),
        ("The answer is 7.", None, None),
        ("The answer is 7.", " ", None),
        ("The answer is 7.", "\\boxed{}", None),
    ],
)
def test_default_grading(response, gold, right):
    assert is_correct(response, gold) is right


@pytest.mark.parametrize(
    "response, gold, grade",
    [
        ("\\boxed{2\\sqrt{221}}", "2 \\sqrt { 221 }", RIGHT),
        ("\\boxed{221}", "2 \\sqrt { 221 }", WRONG),
        ("The length is $\\boxed{\\dfrac{\\sqrt{3}}{2}}$.", "\\boxed{\\frac{\\sqrt{3}}{2}}", RIGHT),
        ("The answer is \\( \\sqrt{12} \\).", "2\\sqrt{3}", RIGHT),
        ("<answer>x = 45^\\circ</answer>", "45", RIGHT),
        ("\\boxed{[1,3)}", "1 \\le x < 3", RIGHT),
        ("\\boxed{\\sqrt{}", "2\\sqrt{3}", WRONG),
        ("no idea", "2\\sqrt{3}", WRONG),
        ("\\boxed{12x}", "12", WRONG),
        ("\\boxed{12}", "12x", WRONG),
        # What math-verify cannot read is compared as text
        ("\\boxed{[0, 2) \\text{ up, } (2, 3) \\text{ down}}", "$[0,2)$ up, $(2,3)$ down", RIGHT),
        ("\\boxed{[0, 3) \\text{ up, } (2, 3) \\text{ down}}", "$[0,2)$ up, $(2,3)$ down", WRONG),
        ("<answer>\\foo\\bar</answer>", "\\foo \\bar", RIGHT),
        # Torn LaTeX, so that not even the same text counts
        ("\\boxed{5}", "\\sqrt{", None),
        ("<answer>\\foo{</answer>", "\\foo{", None),
    ],
)
def test_grades(grader, response, gold, grade):
    assert grader.grade(response, gold) == grade


CHOICES = ["10", "A. 11", "$6\\sqrt{5}$", "D) a red ball"]


@pytest.mark.parametrize(
    "candidate, gold, right",
    [
        *(
            (candidate, "B", True)
            for candidate in ("B", "(B)", "B.", "B. 11", "\\text{B}", "option B", "**B**", "b")
        ),
        *((candidate, "(B)", True) for candidate in ("B", "(B) 11", "\\textbf{(B)}\\ 11")),
        *((candidate, "B", False) for candidate in ("A", "(C)", "A. 11", "B and C", "BD", "")),
        ("C", "C. 12", True),
        ("12", "C. 12", True),
        ("13", "C. 12", False),
        ("B. 12", "12", True),
        ("B. 13", "12", False),
    ],
)
def test_multiple_choice(grader, candidate, gold, right):
    assert grader.grade(f"\\boxed{{{candidate}}}", gold) == (RIGHT if right else WRONG)


@pytest.mark.parametrize(
    "candidate, gold, right",
    [
        ("10", "A", True),
        ("10", "B", False),
        ("10 cm", "A", True),
        ("\\sqrt{180}", "C", True),
        ("\\sqrt{181}", "C", False),
        ("a red ball", "D", True),
        ("a blue ball", "D", False),
        ("A", "10", True),
        ("C", "6\\sqrt{5}", True),
        ("D", "10", False),
        ("10", "E", False),
        ("A. 11", "B", False),  # it says A, whatever it writes behind it
    ],
)
def test_the_text_of_an_option_is_the_option(grader, candidate, gold, right):
    response = f"\\boxed{{{candidate}}}"
    assert grader.grade(response, gold, choices=CHOICES) == (RIGHT if right else WRONG)


JUNK = [
    "\\boxed{" * 14_000,
    "<answer>" * 12_000,
    "\\boxed{" + "{" * 100_000,
    "\\boxed{" + "}" * 100_000,
    "\\boxed{" + "\\frac{" * 15_000 + "}" * 15_001,
    "\\boxed{" + "1+" * 50_000 + "1}",
    "\\boxed{" + "(" * 100 + "}",
    "\\boxed{" + "\\sqrt" * 100 + "}",
    "\\boxed{" + "x^" * 20 + "}",
    "\\boxed{\\frac{1}{0}}",
    "\\boxed{\x00\ud800}",
    "1" * 100_000,
    "answer is " * 10_000,
]


@pytest.mark.parametrize("junk", JUNK, ids=range(len(JUNK)))
@pytest.mark.parametrize("gold", ["5", "B", "yes", "2 \\sqrt { 221 }"])
def test_junk_is_wrong_and_the_next_response_is_graded(grader, junk, gold):
    assert grader.grade(junk, gold) == WRONG
    assert grader.grade("\\boxed{\\sqrt{884}}", "2 \\sqrt { 221 }") == RIGHT
    assert grader.timeouts == 0


@pytest.mark.parametrize(
    "gold, reason",
    [
        (None, "no gold answer"),
        (" ", "empty gold answer"),
        ("\\boxed{}", "empty gold answer"),
        ("1" * 513, "gold answer of more than 512 characters"),
        ("\\frac{1}{", "gold answer with unbalanced braces"),
        ("domain: $[0,2)$, range: all", None),
        ("7", None),
    ],
)
def test_why_a_gold_answer_is_excluded(grader, gold, reason):
    assert grader.exclusion(gold) == reason
    assert grader.can_grade(gold) is (reason is None)
    assert (grader.grade("\\boxed{3}", gold) is None) is (reason is not None)


@pytest.mark.parametrize(
    "response, gold, choices, extracted",
    [
        ("So it is \\boxed{12 \\text{ cm}}.", "12", None, "12 \\text{ cm}"),
        ("The answer is C (plum).", "plum", ["apple", "pear", "plum"], "C"),
        ("A and B", "A", ["apple", "pear", "plum"], "A, B"),
        ("<think>It is 5", "5", None, None),
        ("\\boxed{5}. So the answer is 6.", "5", None, "5; 6"),
    ],
)
def test_a_grade_holds_the_answer_that_was_found(grader, response, gold, choices, extracted):
    grade = grader.grade(response, gold, choices=choices)
    assert grade is not None and grade.extracted == extracted


def test_an_endless_answer_is_wrong_and_the_next_response_is_graded():
    grader = Grader(RewardConfig(time_limit=1.0))
    assert grader.grade("\\boxed{9^{9^{9^{9}}}}", "5") == WRONG
    assert grader.timeouts == 1
    assert grader.grade("\\boxed{5x - 3x}", "$2x$") == RIGHT
    assert grader.timeouts == 1
    grader.close()


def test_long_answers_are_wrong_and_long_gold_answers_not_gradable():
    grader = Grader(RewardConfig(max_answer_length=4))
    assert grader.grade("\\boxed{1234}", "1234") == RIGHT
    assert grader.grade("\\boxed{1234.}", "1234") == WRONG
    assert grader.grade("\\boxed{1}", "12345") is None


def test_numbers_letters_and_words_start_no_worker():
    grader = Grader()
    responses = [
        "The answer is 7.",
        "red 3 4 red",
        "max 3 4 =",
        "The answer is (B).",
        "",
        "= 3 +",
        "yes",
        "3, 4",
    ]
    for gold in ("7", "12", "B", "Yes"):
        for response in responses:
            assert grader.grade(response, gold) is not None
    assert grader._latex.pid is None


def test_settings_reach_the_comparison():
    loose = Grader(RewardConfig(tolerance=0.05, lenient=False))
    assert loose.grade("\\boxed{103}", "100") == RIGHT
    assert loose.grade("\\boxed{106}", "100") == WRONG
    assert loose.grade("\\boxed{3.5}", "2\\sqrt{3}") == RIGHT  # 3.464
    assert loose.grade("100", "100") == WRONG
    loose.close()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"tolerance": -0.1}, "tolerance must be 0 or more"),
        ({"time_limit": 0.0}, "time_limit must be above 0"),
        ({"time_limit": 1e300}, "time_limit must be at most 3600"),
        ({"max_answer_length": 0}, "max_answer_length must be at least 1"),
        ({"correct_from": float("nan")}, "correct_from must be a finite number"),
    ],
)
def test_wrong_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        RewardConfig(**settings)


FUNCTIONS = """
from dataclasses import dataclass

@dataclass
class Weights:
    short: float = 0.25

def graded(response, gold, meta):
    return Weights().short + len(meta) / 2 if gold in response else None

def right(response, gold, meta):
    return response == gold

def half(response, gold, meta):
    return 0.5

def no_gold(response, gold, meta):
    return gold is None

def text(response, gold, meta):
    return "1"

def infinite(response, gold, meta):
    return float("inf")

def fails(response, gold, meta):
    raise KeyError("colour")

def two(response, gold):
    return 1

number = 3
"""


@pytest.fixture
def functions(tmp_path):
    path = tmp_path / "my_rewards.py"
    path.write_text(FUNCTIONS)
    return path


def test_a_users_function_from_a_file(functions):
    grader = Grader(RewardConfig(function=f"{functions}:graded", correct_from=0.75))
    assert grader.grade("12 b", "b") == Grade(0.25, False)
    assert grader.grade("12 b", "b", meta={"source": "s"}) == Grade(0.75, True)
    assert grader.grade("12", "b") is None
    assert Grader(RewardConfig(function=f"{functions}:right")).grade("b", "b") == RIGHT
    assert Grader(RewardConfig(function=f"{functions}:half")).grade("b", "b") == Grade(0.5, False)
    assert Grader(RewardConfig(function=f"{functions}:no_gold")).grade("b", None) == RIGHT


def test_a_users_function_from_a_module(functions, monkeypatch):
    monkeypatch.syspath_prepend(functions.parent)
    assert Grader(RewardConfig(function="my_rewards:right")).grade("b", "a") == WRONG


@pytest.mark.parametrize(
    "name, message",
    [
        ("absent", "has no 'absent'"),
        ("number", "is a int, not a function"),
    ],
)
def test_a_name_that_is_no_function(functions, name, message):
    with pytest.raises(ValueError, match=message):
        Grader(RewardConfig(function=f"{functions}:{name}"))


@pytest.mark.parametrize(
    "path, message",
    [
        ("reward", "'package.module:name' or 'path/to/file.py:name'"),
        ("absent_package.module:name", "ModuleNotFoundError: No module named 'absent_package'"),
        ("absent/file.py:name", "there is no file .*absent/file.py"),
    ],
)
def test_a_path_that_does_not_exist(path, message):
    with pytest.raises(ValueError, match=message):
        Grader(RewardConfig(function=path))


def test_errors_name_the_users_line(tmp_path):
    (tmp_path / "deep.py").write_text(
        "import json\n\ndef helper(text):\n    return json.loads(text)\n\ndef f(response, gold, meta):\n"
        "    return helper(response)\n"
    )
    grader = Grader(RewardConfig(function=f"{tmp_path}/deep.py:f"))
    with pytest.raises(ValueError, match=r"raised JSONDecodeError: .* \(deep.py, line 4\)\.$"):
        grader.grade("{", "b")
    assert grader.grade("1", "b") == RIGHT


def test_a_file_with_a_syntax_error(tmp_path):
    (tmp_path / "typo.py").write_text("x = 1\ndef f(:\n")
    with pytest.raises(ValueError, match=r"SyntaxError: .*line 2"):
        Grader(RewardConfig(function=f"{tmp_path}/typo.py:f"))


def test_a_file_that_fails_on_import(tmp_path):
    (tmp_path / "broken.py").write_text("1 / 0")
    with pytest.raises(
        ValueError,
        match=r"broken.py:f' cannot be loaded: ZeroDivisionError: division by zero \(broken.py, line 1\)",
    ):
        Grader(RewardConfig(function=f"{tmp_path}/broken.py:f"))


@pytest.mark.parametrize(
    "name, message",
    [
        ("text", r":text' returned '1' \(str\), not a bool"),
        ("infinite", r":infinite' returned inf \(float\), not a bool, a finite number or None"),
        ("fails", r":fails' raised KeyError: 'colour' \(my_rewards.py, line 27\)\."),
        ("two", r":two' raised TypeError: two\(\) takes 2 positional arguments but 3 were given"),
    ],
)
def test_a_users_function_that_goes_wrong(functions, name, message):
    grader = Grader(RewardConfig(function=f"{functions}:{name}"))
    with pytest.raises(ValueError, match=message):
        grader.grade("b", "b")
