"""Models inside the package, so that the first run needs no network."""
