"""Pictures of the maps while a run trains."""

import yaml
from rich.console import Console

from tfcausal.browsing.runs import snapshots
from tfcausal.callbacks.snapshot_sheet import mark_of
from tfcausal.config import config_from_mapping
from tfcausal.experiment import run_experiment
from tfcausal.progress import ConsoleProgress
from tfcausal.runs import RunDirectory


def test_a_run_keeps_pictures_of_what_its_models_look_at_if_wanted(small_config, tmp_path):
    settings = yaml.safe_load(small_config.read_text())
    settings.update(models={"plain": {"method": "plain"}, "cfcn": {"method": "cfcn", "mask_share": 0.5, "epochs": 2}})
    settings["report"]["snapshot_epochs"] = 2
    run = RunDirectory.create(tmp_path, config_from_mapping(settings))
    progress = ConsoleProgress(Console(quiet=True))
    with progress:
        run_experiment(run, progress)
    found = snapshots(run)
    assert {model: [path.name for path in paths] for model, paths in found.items()} == {
        "plain": ["saliency-epoch-0002.png"],
        "cfcn": ["saliency-epoch-0002.png"],
    }
    assert mark_of(found["plain"][0]) == mark_of(found["cfcn"][0])  # the same images under the same method
