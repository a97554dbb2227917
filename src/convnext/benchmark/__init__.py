"""The speed of models on this machine, in every setting, against the same models of other libraries."""
