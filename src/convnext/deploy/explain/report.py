"""Where what was found is written."""

from pathlib import Path

from convnext.deploy.explain.networks import is_built


def default_folder(name: str) -> Path:
    """``RUN/explain`` for a run's folder; ``runs/explain-NAME`` for weights and for networks by name."""
    path = Path(name)
    if not is_built(name) and (path / "recipe.json").exists():
        return path / "explain"
    return Path("runs") / f"explain-{name.strip('/').replace('/', '-')}"
