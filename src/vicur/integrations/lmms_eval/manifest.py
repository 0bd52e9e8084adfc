"""What lmms-eval reads at its start: the name of the model and where its class is.

Kept apart from the class, so that another model of lmms-eval is run without importing this package's models.
"""

from __future__ import annotations

from lmms_eval.models.registry_v2 import ModelManifest

MANIFEST = ModelManifest(model_id="vicur", chat_class_path="vicur.integrations.lmms_eval.model.ViCuR")
"""Payload of the entry point in the group `lmms_eval.models`."""
