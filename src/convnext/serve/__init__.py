"""A trained network behind HTTP: a page for people, an API for programs, with limits on everything that comes in."""
