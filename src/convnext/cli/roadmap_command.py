"""`convnext roadmap`."""

import sys
from pathlib import Path

from convnext.cli.options import Device, Json, interruptible, names, note, print_json, show


def roadmap(
    data: str | None = None,
    regime: str = "micro",
    steps: str = "",
    epochs: int | None = None,
    seeds: int = 2,
    minutes: float | None = None,
    references: str = "",
    image_size: int | None = None,
    train: bool = True,
    out: Path | None = None,
    device: Device = "auto",
    json: Json = False,
) -> None:
    """Turn a ResNet into a ConvNeXt step by step: cost, speed and accuracy of every step as table, figure and page.

    Writes results.json, roadmap.png, roadmap.svg and report.html. The same command resumes a stopped study.

    Args:
        data: digits (the default), cifar10, cifar100, imagenet:PATH, or the path of a folder of images. With
            --no-train, tiny and base are counted for ImageNet (1000 classes, 224 px) unless data is given.
        regime: micro (for two CPU cores), tiny (ResNet-50 to ConvNeXt-T) or base (ResNet-200 to ConvNeXt-B).
        steps: keys of the steps to run, separated by commas; all by default.
        epochs: epochs of each training; the data's recipe decides by default.
        seeds: trainings of each step.
        minutes: begin no further round of seeds that would end later than this; at least two rounds are made.
        references: networks to compare with, separated by commas: torchvision/resnet18,timm/mobilenetv3_small_100.
        image_size: pixels a side; the data's recipe decides by default.
        train: with --no-train, count and measure only.
        out: folder for the results; runs/roadmap-REGIME-DATA by default, with --no-train none.
    """
    from convnext.console import console_on
    from convnext.study.plan import make_plan
    from convnext.study.report import write_report
    from convnext.study.runner import run_study
    from convnext.study.study_table import follow, table

    plan = make_plan(
        regime=regime,
        data=data,
        steps=names(steps),
        references=names(references),
        epochs=epochs,
        image_size=image_size,
        seeds=seeds,
        minutes=minutes,
        device=device,
        train=train,
        out=out,
    )
    with interruptible(plan.folder):
        results = follow(run_study(plan), console_on(sys.stderr))
        page = write_report(results, plan.folder) if plan.folder else None
    if json:
        print_json(results)
    else:
        show(table(results))
    if page:
        for kind, name in (("Data", "results.json"), ("Figure", "roadmap.png"), ("Report", page.name)):
            note(f"{kind + ':':8}{page.with_name(name)}")
