"""The report as it goes into the docs: tables and a plot."""

from __future__ import annotations

from pathlib import Path


def write(report, folder: Path) -> None:
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "benchmark.md").write_text(markdown(report))
    try:
        import matplotlib
    except ImportError:
        print("No plot: matplotlib is not installed.")
        return
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "mailpool"
    plot(report, folder / "benchmark.svg")


def markdown(report) -> str:
    latencies = list(report.by_latency)
    head = "".join(f" {seconds * 1000:.0f} ms |" for seconds in latencies)
    lines = [
        f"Measured on {report.machine}.",
        "",
        "One tenant, one recipient, small messages; milliseconds per message at a round trip of …, "
        "and the round trips that the proxy counted at 50 ms:",
        "",
        f"| |{head} round trips |",
        "|---|" + "---:|" * (len(latencies) + 1),
    ]
    for row in report.by_latency[latencies[0]]:
        cells = [f" {report.row(seconds, row.name).ms:.1f} |" for seconds in latencies]
        trips = report.row(0.05, row.name).trips
        lines.append(f"| {row.name} |{''.join(cells)} {trips:.2f} |")
    for title, rows in report.tables.items():
        lines += ["", f"{title}:", ""]
        if any(row.trips for row in rows):
            lines += ["| | ms | round trips |", "|---|---:|---:|"]
            lines += [f"| {row.name} | {row.ms:.1f} | {row.trips:.2f} |" for row in rows]
        else:
            lines += ["| | |", "|---|---:|"]
            lines += [f"| {row.name} | {row.ms:.2f} |" for row in rows]
    lines += ["", "Ratios of this run:", "", "| | measured |", "|---|---:|"]
    lines += [f"| {text} | {value} |" for text, _, value, _ in report.claims]
    if report.left_out:
        lines += ["", f"Left out: {'; '.join(report.left_out)}."]
    return "\n".join(lines) + "\n"


def plot(report, path: Path) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 5), layout="constrained")
    latencies = list(report.by_latency)
    for row in report.by_latency[latencies[0]]:
        ours = row.name.startswith("mailpool")
        axes.plot(
            [seconds * 1000 for seconds in latencies],
            [report.row(seconds, row.name).ms for seconds in latencies],
            label=row.name,
            marker="o",
            markersize=4 if ours else 3,
            linewidth=2.5 if ours else 1,
            linestyle="-" if ours else ":" if row.name.startswith("raw") else "--",
        )
    axes.set_yscale("log")
    axes.set_xlabel("round trip, ms")
    axes.set_ylabel("ms per message")
    axes.set_title("Time per message by latency, one tenant (Postfix, STARTTLS, login)")
    axes.grid(visible=True, which="both", alpha=0.25)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    figure.savefig(path, metadata={"Date": None})
