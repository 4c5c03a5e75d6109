"""What a study with many workers costs: its driver on simulated workers, and Ray on one machine."""
