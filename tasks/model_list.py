"""`ltm-eval --list-models`: presets, families, and public weights, and which of them are on this machine."""

from __future__ import annotations

from ltm import registry
from ltm.files import home
from ltm.published.known import known
from ltm.training.checkpoint import steps
from tasks.catalog import PREFIX
from tasks.report import console, plain_table


def show() -> None:
    """Print a table of presets, one of public weights, and what else `--model` takes."""
    presets = plain_table("Presets: ltm-train NAME trains one; tiny ones train themselves on first use")
    for column in ("Family", "Presets", "Weights here"):
        presets.add_column(column, overflow="fold")
    for family in registry.names(registry.MODELS):
        cls = registry.model_family(family)
        here = [name for name in cls.presets if steps(home() / "models" / name)]
        presets.add_row(family, " ".join(cls.presets) or "-", " ".join(here) or "-")
    console().print(presets)
    public = plain_table("Public weights; this project has opened none of the files yet, only files like them")
    for column in ("--model", "Parameters", "Licence", "Files", "Here"):
        public.add_column(column, overflow="fold", no_wrap=column == "--model")
    for each in known():
        name = each.name if "/" in each.id else f"{each.family}:DIR, from {each.id}"
        size = f"{each.parameters / 1e6:.0f}M"
        public.add_row(name, size, each.licence, each.files, "yes" if each.here else "no")
    console().print(public)
    reported = [(each.name, found) for each in known() for found in (each.paper, each.independent) if found]
    tasks = list(dict.fromkeys(task for _, found in reported for task in found.perplexity))
    said = plain_table("Perplexities that others report, by protocols of their own (docs/reported.md)")
    said.add_column("Weights, source", overflow="fold")
    for task in tasks:
        said.add_column(task.removeprefix(PREFIX), justify="right")
    for name, found in reported:
        said.add_row(f"{name}, {found.source}", *(found.perplexity.get(task, "-") for task in tasks))
    console().print(said)
    print(
        "All of these saw 1,024 positions in training: short texts are new to them. Of a repository the\n"
        "newest commit is taken, and recorded in the result. --model also takes a directory of ltm-train,\n"
        "a hub repository with one, FAMILY:DIR, and pretrained:gpt2 or any other causal model of\n"
        "transformers. Pickled files go through ltm-convert first."
    )
