"""A task's output on disk: one data file in capture order and one index that tells the streams apart."""
