"""The names of what a run's folder holds: its files, and the folders in it."""

CONFIG = "config.toml"  # the settings of a single run
PIPELINE = "pipeline.toml"  # the stages of a recipe, as they were started
RESULT = "result.json"  # written last: what a run found, and thereby that it is done
METRICS = "metrics.jsonl"  # a record of each epoch
REPORT = "report.html"
COMPARISON = "comparison.html"  # of several runs, in the folder of the first
TARGETS = "teacher.safetensors"  # what a distilled model learns
ENSEMBLE = "ensemble.toml"  # who the members of an ensemble are
STATE = "state"  # what --resume needs
BEST = "best"  # the model of the best epoch
CARD = "README.md"  # in best/ and in an export: the model card
CALIBRATION = "calibration.toml"  # in best/: what was fitted on dev
PREDICTIONS = "predictions"
FIGURES = "figures"
COPIES = "members"  # of an ensemble that keeps its members' models

FILES = (CONFIG, PIPELINE, RESULT, METRICS, REPORT, COMPARISON, TARGETS, ENSEMBLE)
FOLDERS = (STATE, BEST, f"{BEST}.old", PREDICTIONS, FIGURES, COPIES)
PIECES = (*FILES, *FOLDERS)
BEGUN = {CONFIG, PIPELINE, RESULT, METRICS, STATE, BEST, f"{BEST}.old"}  # what shows that a run has begun
