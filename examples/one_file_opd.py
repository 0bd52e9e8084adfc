"""On-policy distillation from visual cues: the whole idea in one file.

A student reads two digits in a small image and adds them. Its teacher is a frozen copy of the student
whose prompt also has the cue: which two digits are in the image. The student samples answers, the
teacher scores the tokens of these answers, and the update raises the log-probs of tokens that are more
likely under the teacher than under the student, and lowers the others (ViCuR, arXiv 2606.05718,
equations 6 and 7).

It is plain PyTorch, without the library and without checkpoints: a transformer with 200 thousand
parameters, pretrained and distilled in about half a minute on a laptop.

    python examples/one_file_opd.py
"""

from __future__ import annotations

import copy
import time

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# ---------------------------------------------------------------------------------------- the task
# An image is two 5x7 digits in noise. An answer has three tokens: a, b, a + b. Tokens 0-18 are numbers.
GLYPHS = """
01110 00100 01110 11111 00010 11111 00110 11111 01110 01110
10001 01100 10001 00010 00110 10000 01000 00001 10001 10001
10011 00100 00001 00100 01010 11110 10000 00010 10001 10001
10101 00100 00010 00010 10010 00001 11110 00100 01110 01111
11001 00100 00100 00001 11111 00001 10001 01000 10001 00001
10001 00100 01000 10001 00010 10001 10001 01000 10001 00010
01110 01110 11111 01110 00010 01110 01110 01000 01110 01100
"""
LINES = GLYPHS.split()
FONT = torch.tensor(
    [[[int(bit) for bit in LINES[10 * row + digit]] for row in range(7)] for digit in range(10)]
).float()
QUESTION, HINT, ANSWER = 19, 20, 21
VOCABULARY, PIXELS, LENGTH = 22, 35, 3
NOISE = 0.3
FRESH, FADED = 1.0, 0.45  # strength of the ink: pretraining has fresh ink, the task has faded ink


def problems(count: int, ink: float = FADED) -> tuple[Tensor, Tensor]:
    """Digits (B, 2), and images (B, 2, 35) of noisy glyphs, each glyph one visual token."""
    digits = torch.randint(10, (count, 2))
    clean = ink * FONT[digits].flatten(2)
    return digits, clean + NOISE * torch.randn(clean.shape)


# --------------------------------------------------------------------------------------- the model
class Model(nn.Module):
    """A causal transformer over [two visual tokens][question, or hint with two digits][answer...]."""

    def __init__(self, size: int = 64, layers: int = 3) -> None:
        super().__init__()
        self.see = nn.Sequential(nn.Linear(PIXELS, 128), nn.GELU(), nn.Linear(128, size))
        self.embed = nn.Embedding(VOCABULARY, size)
        self.position = nn.Embedding(16, size)
        layer = nn.TransformerEncoderLayer(size, 4, 4 * size, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(size)

    def forward(self, images: Tensor, text_BL: Tensor) -> Tensor:
        """Log-probabilities of the next token at every text position: (B, L, V)."""
        hidden = torch.cat([self.see(images), self.embed(text_BL)], 1)
        hidden = hidden + self.position(torch.arange(hidden.shape[1]))
        mask = nn.Transformer.generate_square_subsequent_mask(hidden.shape[1])
        hidden = self.norm(self.blocks(hidden, mask=mask, is_causal=True))
        return F.log_softmax(hidden[:, 2:] @ self.embed.weight.T, -1)


# ------------------------------------------------------------- views: what a model is shown as text
def plain(digits_B2: Tensor) -> Tensor:
    """The student's view: question tokens in place of a hint."""
    return torch.tensor([QUESTION, QUESTION, QUESTION, ANSWER]).expand(len(digits_B2), -1)


def hinted(digits_B2: Tensor) -> Tensor:
    """The teacher's view: the cue states the visible digits, not their sum."""
    prompt = plain(digits_B2).clone()
    prompt[:, 0], prompt[:, 1:3] = HINT, digits_B2
    return prompt


# ----------------------------------------------------------------------------- rollouts and scoring
@torch.no_grad()
def sample(model: Model, images: Tensor, prompt_BP: Tensor, temperature: float = 1.0) -> Tensor:
    """Answers of three tokens, (B, 3); temperature 0 is greedy."""
    text = prompt_BP
    for _ in range(LENGTH):
        log_probs = model(images, text)[:, -1]
        if temperature == 0:
            token = log_probs.argmax(-1, keepdim=True)
        else:
            token = torch.multinomial((log_probs / temperature).softmax(-1), 1)
        text = torch.cat([text, token], 1)
    return text[:, -LENGTH:]


def score(model: Model, images: Tensor, prompt_BP: Tensor, answer_BT: Tensor) -> Tensor:
    """log p of each token of a given answer after a given prompt: (B, 3)."""
    log_probs = model(images, torch.cat([prompt_BP, answer_BT[:, :-1]], 1))[:, -LENGTH:]
    return log_probs.gather(-1, answer_BT[..., None])[..., 0]


@torch.no_grad()
def accuracy(model: Model, view=plain, count: int = 4000) -> float:
    """Percentage of greedy answers with the right sum, on new problems."""
    digits, images = problems(count)
    answers = sample(model, images, view(digits), temperature=0)
    return 100 * (answers[:, -1] == digits.sum(1)).float().mean().item()


# ----------------------------------------------------------------------------------- the two stages
def pretrain(steps: int = 400, batch: int = 128) -> Model:
    """Supervised pretraining of a base that reads fresh ink, or hints if the image is blank."""
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3)
    for step in range(steps):
        view, ink = (plain, FRESH) if step % 2 == 0 else (hinted, 0.0)
        digits, images = problems(batch, ink)
        target = torch.cat([digits, digits.sum(1, keepdim=True)], 1)
        loss = -score(model, images, view(digits), target).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def distil(student: Model, steps: int = 200, batch: int = 256) -> Model:
    """ViCuR's loop. The student sees no answer, no reward and no cue."""
    teacher = copy.deepcopy(student).requires_grad_(False)  # the student's initial weights, frozen
    optimizer = torch.optim.AdamW(student.parameters(), 3e-4)
    for step in range(1, steps + 1):
        digits, images = problems(batch)
        answers = sample(student, images, plain(digits))  # on-policy
        log_p = score(student, images, plain(digits), answers)
        with torch.no_grad():
            log_q = score(teacher, images, hinted(digits), answers)
            advantage = (log_q - log_p).clamp(-10, 10)  # eq. 6, detached
        # One update per batch of answers, so they were sampled from the current policy: the
        # ratio of eq. 7 has the value 1 and the gradient of log p, and its clip has no effect.
        ratio = (log_p - log_p.detach()).exp()
        loss = -(ratio * advantage).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0:
            print(f"  step {step}: teacher - student gap {(log_q - log_p).mean().item():+.3f} nats")
    return student


def main() -> None:
    torch.manual_seed(0)
    started = time.perf_counter()
    base = pretrain()
    print(f"base, without cue:     {accuracy(base):.1f} % right")
    print(f"base, with cue:        {accuracy(base, hinted):.1f} % right (the teacher)")
    student = distil(copy.deepcopy(base))
    print(f"student, without cue:  {accuracy(student):.1f} % right (trained without cues or answers)")
    print(f"{time.perf_counter() - started:.0f} seconds")


if __name__ == "__main__":
    main()
