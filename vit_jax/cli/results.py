"""The commands `report`, `figures` and `tables`."""

from vit_jax.cli import arguments
from vit_jax.cli.parser import Verb
from vit_jax.text import print_line, print_text


def add_report_flags(parser) -> None:
    parser.add_argument(
        "workdirs",
        nargs="+",
        metavar="WORKDIR",
        help="workdirs, or their URLs; all stages and runs of sweeps in them are included",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="output file (default: report.html in the workdir; for several workdirs, in the "
        "current folder)",
    )
    parser.add_argument(
        "--no_model",
        action="store_true",
        help="leave out predictions and attention, which need to run the model",
    )
    parser.add_argument(
        "--refresh",
        type=arguments.positive_int,
        metavar="SECONDS",
        help="update the pages every SECONDS while a run is in progress; open pages reload",
    )


def run_report(args, file: str | None, overrides: dict[str, str]) -> int:
    arguments.refuse_config("report", file, overrides)
    from vit_jax.distributed.process import prepare_process
    from vit_jax.distributed.progress import Progress
    from vit_jax.report import write

    prepare_process()
    show = Progress(seconds_between=10).show
    line = write.write_reports(
        args.workdirs, args.out, with_model=not args.no_model, refresh=args.refresh, show=show
    )
    print_line(line)
    return 0


def add_figures_flags(parser) -> None:
    arguments.add_where(parser)
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for PNG and SVG files")
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        metavar="FILE",
        help="image to show; may be repeated (default: images of the run's data, or two photos)",
    )
    parser.add_argument(
        "--theme", choices=("light", "dark"), default="light", help="colours (default light)"
    )
    parser.add_argument(
        "--block",
        type=int,
        metavar="I",
        help="layer whose attention heads are shown, from 0 (default: the last)",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="draw only this figure, such as figure6; may be repeated (default: all)",
    )
    parser.add_argument(
        "--beside",
        action="append",
        default=[],
        metavar="WHERE",
        help="more weights to show in figure 10 (position embeddings); may be repeated",
    )
    arguments.add_data_overrides(parser)


def run_figures(args, file: str | None, overrides: dict[str, str]) -> int:
    where = arguments.where(args)
    arguments.refuse_config("figures", file)
    from vit_jax.distributed.process import prepare_process
    from vit_jax.figures.draw import draw_figures

    prepare_process()
    line = draw_figures(
        where,
        args.out,
        files=args.image,
        overrides=overrides,
        theme=args.theme,
        block=args.block,
        beside=args.beside,
        only=args.only,
    )
    print_line(line)
    return 0


def add_tables_flags(parser) -> None:
    parser.add_argument(
        "name",
        metavar="NAME",
        help="table1 to table9, figure2, figure3, figure4, figure5, figure8, figure9, figure12, "
        "algoperf (the published band of AlgoPerf's ImageNet-ViT), communication (bytes exchanged "
        "between devices), or benchmark (files of benchmark --out)",
    )
    parser.add_argument(
        "files",
        nargs="*",
        metavar="INPUT",
        help="workdirs or their URLs, or files written by `benchmark --out`",
    )
    parser.add_argument("--out", metavar="DIR", help="folder for a plot of the table")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_tables(args, file: str | None, overrides: dict[str, str]) -> int:
    arguments.refuse_config("tables", file, overrides)
    from vit_jax.tables.render import table

    print_text(table(args.name, args.json, args.files, args.out))
    return 0


REPORT = Verb(
    "report",
    "write an HTML page of curves, inputs and predictions for each run, and compare several",
    "runs/quickstart",
    add_report_flags,
    run_report,
)
FIGURES = Verb(
    "figures",
    "draw the paper's figures 6, 7, 10, 11 and 14 from any weights, and reconstructions",
    "--checkpoint=imagenet21k/ViT-B_16 --image=photo.jpg --out=figures",
    add_figures_flags,
    run_figures,
)
TABLES = Verb(
    "tables",
    "print a table of the paper next to your results",
    "table6",
    add_tables_flags,
    run_tables,
)
