"""A fitted system as an MLflow model: give it the volumes of one study, it gives label probabilities, or those of the case's classes.

MLflow stores this file beside the weights and runs it when the model is loaded ("models from code"), so it imports nothing of `tasks`.
The frozen backbone is not stored: the model knows its fingerprint, finds its folder on the machine where it runs, and refuses another.
"""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path

import mlflow
import numpy as np
from mlflow.pyfunc import PythonModel

from pipelines.backbones import find_backbone
from pipelines.errors import DataError

# `predict` has no type hints on purpose: MLflow would take them for the schema of a list of rows. The signature says what goes in.
warnings.filterwarnings("ignore", message=".*Add type hints to the `predict` method")

SPACING = "spacing_mm"
BRAIN = "brain"
SLICE_AXIS = "slice_axis"


class SemiflowModel(PythonModel):
    """Probabilities of the target labels for one study, or of the classes that the whole study may be of.

    Input, by name, float32 where not said otherwise:

    - one volume per modality, `(slices, rows, columns)` on one grid, standardised as the resample stage does (0 outside the head, about
      0 +- 1 inside). A modality that the study lacks is filled with NaN.
    - `spacing_mm`: `(3,)`, of the same axes.
    - `slice_axis`: `(1,)` int64, the axis of the patient that slices lie along: 0 left-right, 1 posterior-anterior, 2 inferior-superior (axial).
    - `brain`: the foreground mask, above 0 inside; filled with NaN it is taken from the voxels where a volume is not 0.

    Output: `(1 + labels, slices, rows, columns)` float32 summing to 1 over the first axis, channel 0 being background; or `(classes,)`, in the order
    of the model config's `outcomes`.
    """

    def load_context(self, context) -> None:
        """Read the fit, its prompts and, where the system looks at tokens, the frozen backbone."""
        from pipelines.prompts.bank import PromptBank
        from pipelines.systems.protocol import Task
        from pipelines.train.fitted import load_fitted

        folder, config = Path(context.artifacts["fit"]), context.model_config
        self.site = config["site"]
        self.modalities = tuple(config["modalities"])
        backbone = find_backbone(config["backbone"], config["backbone_fingerprint"]) if config["uses_tokens"] else None
        prompts = PromptBank.load(folder / "text", folder / "text")
        self.fitted = load_fitted(folder / "weights", Task(tuple(config["labels"]), self.modalities, prompts, backbone, tuple(config["outcomes"])))

    def predict(self, context, model_input, params=None):
        """See the class."""
        return self.fitted.predict(self.case(model_input)).astype(np.float32)

    def case(self, tensors: Mapping[str, np.ndarray]):
        """The study as the systems know it, its tokens encoded here."""
        from pipelines.cohort import Case

        images = {name: np.asarray(tensors[name], np.float32) for name in self.modalities if not np.isnan(tensors[name]).all()}
        if not images:
            raise DataError(f"every modality is missing (all NaN); give at least one of {', '.join(self.modalities)}")
        shapes = {name: image.shape for name, image in images.items()}
        if len(set(shapes.values())) > 1:
            raise DataError(f"the volumes lie on different grids ({shapes}); resample them to one grid first")
        incomplete = [name for name, image in images.items() if np.isnan(image).any()]
        if incomplete:
            raise DataError(f"{', '.join(incomplete)} has NaN voxels among others; a volume is all NaN where the modality is missing, else has none")
        brain = np.asarray(tensors[BRAIN])
        brain = np.any([image != 0 for image in images.values()], axis=0) if np.isnan(brain).all() else brain > 0
        spacing = tuple(float(value) for value in np.asarray(tensors[SPACING]).ravel())
        tokens = {}
        if self.fitted.uses_tokens:
            tokens = {name: self.fitted.task.backbone.encode_image(image, spacing) for name, image in images.items()}
        # a name of its own: systems may keep what they computed of a case by its name
        return Case(subject=uuid.uuid4().hex, session="", site=self.site, spacing_mm=spacing, slice_axis=int(tensors[SLICE_AXIS][0]),
                    images=images, brain=brain, tokens=tokens)


mlflow.models.set_model(SemiflowModel())
