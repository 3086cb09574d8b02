"""`headgate models`."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console


@dataclass(frozen=True, kw_only=True)
class Models:
    """List pretrained models, recipes, and architectures."""

    def run(self, console: Console) -> None:
        from headgate import models, recipes
        from headgate.checkpoint import list_pretrained

        console.print("[bold]pretrained[/] (headgate.pretrained, headgate eval)")
        for name in list_pretrained():
            console.print(f"  {name}")
        console.print("[bold]recipes[/] (headgate train)")
        for name in recipes.names():
            console.print(f"  {name}")
        own = [name for name in models.names() if "/" not in name]
        console.print(f"[bold]architectures[/] (headgate.models.create)\n  {', '.join(own)},")
        console.print("  torchvision/<any classifier>, timm/<any model>")
