"""A user's own rewards: functions in a file or a package that a recipe names, checked without being run."""
