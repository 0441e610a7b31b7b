"""A study's file and the results of its runs in; tables, tests, verdicts and pictures out."""
