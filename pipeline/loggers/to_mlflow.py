"""MLflow. https://mlflow.org/docs/latest/api_reference/python_api/mlflow.client.html"""

from __future__ import annotations

import csv
import io
import json
import os
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
from PIL import Image

from unic_pipe.pipeline.loggers.logger import Page, Picture, Run, Value
from unic_pipe.schemas.loggers import MlflowConfig

TAG = "unic_pipe.id"
"""Holds our id: MLflow gives runs an id of its own."""
EVERY_ROW = "epoch"
"""A column that every row of a student has."""
BATCH = 100
"""Parameters that one request may hold."""


class Mlflow:
    """One run. Tables are artifacts in CSV."""

    def __init__(self, config: MlflowConfig) -> None:
        self._config = config

    @staticmethod
    def check(config: MlflowConfig) -> None:
        """Nothing can be told without asking the server."""

    def begin(self, run: Run) -> int | None:
        """Find the run by our id, or open one; its last step."""
        from mlflow import MlflowClient

        uri, artifacts = self._config.tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"), None
        if uri is None:
            folder = run.workdir / "loggers"
            folder.mkdir(parents=True, exist_ok=True)
            uri, artifacts = f"sqlite:///{folder}/mlflow.db", (folder / "mlflow").as_uri()
        self._client = client = MlflowClient(tracking_uri=uri)
        experiment = client.get_experiment_by_name(self._config.experiment)
        place = (
            client.create_experiment(self._config.experiment, artifact_location=artifacts)
            if experiment is None
            else experiment.experiment_id
        )
        found = client.search_runs([place], f"tags.`{TAG}` = '{run.id}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            client.update_run(self._id, status="RUNNING")
            history = client.get_metric_history(self._id, EVERY_ROW)
            return max((metric.step for metric in history), default=None)
        self._id = client.create_run(place, run_name=run.name, tags={TAG: run.id, "kind": run.kind}).info.run_id
        self._settings(run.settings)
        return None

    def _settings(self, settings: Mapping[str, object]) -> None:
        """Parameters, which runs can be compared by."""
        from mlflow.entities import Param

        found = [Param(_name(name), value) for name, value in _flat(settings)]
        for first in range(0, len(found), BATCH):
            self._client.log_batch(self._id, params=found[first : first + BATCH])

    def log(self, step: int, values: Mapping[str, Value]) -> None:
        """Metrics in one request, others as artifacts."""
        from mlflow.entities import Metric

        now = time.time_ns() // 1_000_000
        numbers = {name: value for name, value in values.items() if isinstance(value, (int, float))}
        self._client.log_batch(self._id, [Metric(_name(name), value, now, step) for name, value in numbers.items()])
        for name, value in values.items():
            if isinstance(value, pa.Table):
                self._client.log_text(self._id, _csv(value), f"{name}.csv")
            elif isinstance(value, Picture):
                self._client.log_image(self._id, Image.open(io.BytesIO(value.png)), f"{name}.png")
            elif isinstance(value, Page):
                self._client.log_text(self._id, value.html, f"{name}.html")

    def end(self) -> None:
        """The run is over, for now."""
        self._client.set_terminated(self._id)


def _name(name: str) -> str:
    """A name as MLflow takes it: it has no @ and no +."""
    return name.replace("@", ":").replace("+", " ")


def _flat(value: object, place: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for name, each in value.items():
            yield from _flat(each, f"{place}.{name}" if place else str(name))
    else:
        text = value if isinstance(value, str) else json.dumps(value)
        yield place, text[:500]


def _csv(table: Any) -> str:
    out = io.StringIO()
    writer = csv.DictWriter(out, table.column_names)
    writer.writeheader()
    writer.writerows(table.to_pylist())
    return out.getvalue()
