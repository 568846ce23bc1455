"""The tables that have a course, as plots: PNG and SVG."""

import pathlib

from vit_jax.tables import communication as table


def communication(folder: str) -> None:
    """Writes `communication.png` and `.svg`: bytes that a device sends over how many there are."""
    from matplotlib.figure import Figure  # Half a second that other tables need not wait.

    from vit_jax.figures import style

    rows, of_xla = table.rows(), tuple(f"XLA: {kind}" for kind in table.XLA)
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, len(table.MODELS), sharey=True)
    for panel, model in zip(panels, table.MODELS):
        for color, layout in zip(("C0", "C1", "C2"), table.LAYOUTS):
            course = [row for row in rows if (row["model"], row["mesh"]) == (model, layout)]
            points = [(row["devices"], _total(row, table.THEORY)) for row in course]
            panel.plot(*zip(*points), color=color, label=f"{layout}, theory")
            points = [(row["devices"], _total(row, of_xla)) for row in course]
            points = [(devices, sent) for devices, sent in points if sent]
            if points:
                panel.plot(*zip(*points), "o", color=color, label=f"{layout}, XLA on CPU")
        panel.set_xscale("log", base=2)
        panel.set_yscale("log")
        panel.set(title=model, xlabel="devices")
        panel.grid(alpha=0.3)
    panels[0].set_ylabel("MB sent per device and step")
    panels[0].legend(fontsize="small")
    figure.suptitle(f"float32, batch {table.BATCH_SIZE:,}, 224 px, 1,000 classes")
    style.save(figure, pathlib.Path(folder), "communication")


def _total(row: dict, kinds: tuple[str, ...]) -> float:
    """MB of all kinds; 0 where nothing is known."""
    return sum(float(row[kind]) for kind in kinds if row[kind])
