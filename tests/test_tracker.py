"""Where a run is logged besides its folder: what --track accepts, and what is refused before anything starts."""

import sys
from pathlib import Path

import pytest

from lsid_ray.errors import InputError
from lsid_ray.train.tracker import check_tracker, parse_tracker


@pytest.mark.parametrize(
    "text", ["tensorboard:runs", "mlflow", "mlflow:", "wandb:", "mlflow:localhost:5000", "mlflow:./mlruns", ":x"]
)
def test_another_text_is_refused(text: str):
    with pytest.raises(InputError, match=rf"^--track {text}: expected mlflow:URI .* or wandb:PROJECT$"):
        parse_tracker(text)


def test_a_relative_database_becomes_absolute_for_trials_in_other_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    assert parse_tracker("mlflow:sqlite:///runs/mlflow.db").target == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert parse_tracker("mlflow:sqlite:////runs/mlflow.db").target == "sqlite:////runs/mlflow.db"
    assert parse_tracker("") is None


def test_a_password_is_not_shown():
    assert parse_tracker("mlflow:postgresql://me:secret@host/db").option == "--track mlflow:postgresql://host/db"


@pytest.mark.parametrize(("text", "package"), [("mlflow:http://host", "mlflow-skinny"), ("wandb:p", "wandb")])
def test_a_missing_package_is_one_line_with_the_command(text: str, package: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, text.partition(":")[0], None)
    with pytest.raises(InputError, match=rf"^--track {text}: .*; pip install {package}$"):
        check_tracker(parse_tracker(text))


def test_an_unreachable_mlflow_server_is_one_line(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(InputError, match=r"^--track mlflow:http://127.0.0.1:9: .*127.0.0.1.*") as error:
        check_tracker(parse_tracker("mlflow:http://127.0.0.1:9"))
    assert "\n" not in str(error.value)


def test_wandb_without_a_key_is_one_line(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("wandb").teardown()
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputError, match=r"^--track wandb:p: No API key configured"):
        check_tracker(parse_tracker("wandb:p"))
