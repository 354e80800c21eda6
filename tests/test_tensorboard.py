"""TensorBoard reads what a run wrote for it, a resumed run's steps once; TensorFlow is never imported."""

import sys

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_metrics import OTHERS, a_run, write

from gpt2flat.training import trackers


def scalars(run, tag) -> dict[int, float]:
    found = EventAccumulator(str(run / "tensorboard"), {"scalars": 0, "tensors": 0})
    found.Reload()
    return {event.step: event.value for event in found.Scalars(tag)}, found


def test_tensorboard_reads_it(tmp_path):
    write(tmp_path, [*a_run(range(5)), *OTHERS], report_to=["tensorboard"])
    losses, found = scalars(tmp_path, "train/loss")
    assert losses == pytest.approx({step: 6.0 - step / 10 for step in range(5)})
    assert set(found.Tags()["scalars"]) == set(trackers.TAGS.values())
    assert [e.step for e in found.Tensors("sample")] == [0, 2, 4]
    assert found.Tensors("sample")[1].tensor_proto.string_val[0].decode() == "    text\n    \u2028 2"
    assert found.summary_metadata["sample"].plugin_data.plugin_name == "text"


def test_a_resume_supersedes(tmp_path):
    write(tmp_path, a_run(range(9)), report_to=["tensorboard"])
    again = [event | {"loss": 1.0} if "loss" in event else event for event in a_run(range(4, 7))]
    write(tmp_path, again, 4, report_to=["tensorboard"])
    losses, found = scalars(tmp_path, "train/loss")
    assert losses == pytest.approx({0: 6.0, 1: 5.9, 2: 5.8, 3: 5.7, 4: 1.0, 5: 1.0, 6: 1.0})
    assert len(found.Scalars("train/loss")) == 7 and [e.step for e in found.Scalars("val/loss")] == [0, 2, 4, 6]


def test_tensorflow_is_not_looked_for(monkeypatch):
    class Finder:
        def find_spec(self, name, *_):
            assert name.split(".")[0] != "tensorflow"

    for name in [name for name in sys.modules if name.split(".")[0] == "tensorboard"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    writer = trackers.TensorBoard.load()[0]
    assert writer.tf.io.gfile.__name__.startswith("tensorboard")
