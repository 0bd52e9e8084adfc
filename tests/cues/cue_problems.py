"""Problems for tests."""

from __future__ import annotations

import io

from PIL import Image

ANSWER = "SEVENTY-SEVEN-SECRET"


def png(colour, size=(8, 8)):
    data = io.BytesIO()
    Image.new("RGB", size, colour).save(data, format="PNG")
    return data.getvalue()


def problem(number, **more):
    return {
        "id": f"p{number}",
        "problem": f"<image>Question {number}: how many?",
        "images": [{"bytes": png((number % 256, number // 256, 0)), "path": None}],
        "answer": ANSWER,
        **more,
    }
