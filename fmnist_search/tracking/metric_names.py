"""Metric keys of MLflow runs. They are stored and never change."""

TRAIN_LOSS = "train/loss"
TRAIN_ACCURACY = "train/accuracy"
VAL_LOSS = "val/loss"
VAL_ACCURACY = "val/accuracy"
BEST_VAL_ACCURACY = "best/val_accuracy"
"""The highest validation accuracy of any epoch; for a study, of its trials that were completed or pruned."""
CONFIRMED_VAL_ACCURACY = "confirmed/val_accuracy"
"""The mean validation accuracy of a study's champion over fresh seeds."""
LEARNING_RATE = "optimizer/learning_rate"
PARAMETER_COUNT = "model/parameters"
COSTS = {"mult_adds": "model/mult_adds", "parameters": PARAMETER_COUNT, "seconds_per_epoch": "time/seconds_per_epoch"}
"""The costs of a training, by their names in a study file; see `cost` for those of users."""

EPOCH_SECONDS = "time/epoch_seconds"
TRIAL_SECONDS = "time/trial_seconds"
OVERHEAD_SECONDS = "time/overhead_seconds"
BUILD_SECONDS = "time/build_seconds"
CAPTURE_SECONDS = "time/capture_seconds"
SAMPLING_SECONDS = "time/sampling_seconds"
TRACKING_SECONDS = "time/tracking_seconds"

TEST_ACCURACY = "test/accuracy"
TEST_ACCURACY_LOW = "test/accuracy_low"
TEST_ACCURACY_HIGH = "test/accuracy_high"
"""Bounds of the 95 % interval of the test accuracy."""
TEST_LOSS = "test/loss"

SEEDS_VAL_ACCURACY_MEAN = "seeds/val_accuracy_mean"
SEEDS_VAL_ACCURACY_STD = "seeds/val_accuracy_deviation"
SEEDS_TEST_ACCURACY_MEAN, SEEDS_TEST_ACCURACY_STD = "seeds/test_accuracy_mean", "seeds/test_accuracy_deviation"
SEEDS_TEST_LOSS_MEAN, SEEDS_TEST_LOSS_STD = "seeds/test_loss_mean", "seeds/test_loss_deviation"


def calibration_error(split: str) -> str:
    """Return the key of the expected calibration error on `split`, "val" or "test"."""
    return f"{split}/calibration_error"


def trial_count(state: str) -> str:
    """Return the key of the number of a study's trials in a state, such as "completed"."""
    return f"progress/{state}"


def cost(metric: str) -> str:
    """Return the key of a cost, such as "mult_adds", or of one that a module of the user's own defines."""
    return COSTS.get(metric, f"cost/{metric}")


def system(name: str) -> str:
    """Return the key of a system metric, such as "cpu_utilization_percentage"."""
    return f"system/{name}"
