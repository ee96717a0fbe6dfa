/* Draws the dashboard's figures, which are in the page as data and in its tables, with uPlot. */
"use strict";

(() => {
    const data = document.getElementById("mailpool-figures");
    if (!data || !window.uPlot) {
        return;
    }
    const figures = JSON.parse(data.textContent);
    const boxes = [...document.querySelectorAll(".mailpool-plot")];
    const drawn = new Map();
    const HEIGHT = 220;

    const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

    function options(figure, width) {
        const text = colour("--body-quiet-color");
        const axis = {
            stroke: text,
            grid: { stroke: colour("--hairline-color"), width: 1 },
            ticks: { stroke: colour("--hairline-color"), width: 1 },
        };
        const shown = (value) => (value == null ? "–" : Math.round(value).toLocaleString() + figure.unit);
        const series = figure.series.map((each, number) => {
            const stroke = colour(`--mailpool-series-${number + 1}`);
            return {
                label: each.name,
                stroke,
                width: figure.bars ? 0 : 2,
                // Not by colour alone.
                dash: number % 3 ? [4 * (number % 3), 3] : undefined,
                fill: figure.bars ? stroke : undefined,
                paths: figure.bars ? uPlot.paths.bars({ size: [0.8, 40] }) : undefined,
                points: { show: !figure.bars, size: 5 },
                value: (plot, value) => shown(value),
            };
        });
        return {
            width,
            height: HEIGHT,
            cursor: { drag: { x: false, y: false } },
            scales: {
                x: { time: false, range: () => [-0.5, figure.labels.length - 0.5] },
                y: { range: (plot, low, high) => [0, figure.unit.endsWith("%") ? 100 : Math.max(1, (high || 0) * 1.05)] },
            },
            axes: [
                {
                    ...axis,
                    incrs: [1, 2, 3, 4, 6, 7, 12],
                    space: 60,
                    values: (plot, at) => at.map((number) => figure.labels[number] ?? ""),
                },
                {
                    ...axis,
                    size: 64,
                    // No parts of messages nor of milliseconds.
                    incrs: Array.from({ length: 30 }, (none, n) => [1, 2, 5][n % 3] * 10 ** Math.floor(n / 3)),
                    values: (plot, at) => at.map(shown),
                },
            ],
            series: [{ label: figure.time, value: (plot, at) => figure.labels[at] ?? "" }, ...series],
        };
    }

    function draw(box) {
        const figure = figures[box.dataset.plot];
        drawn.get(box)?.destroy();
        const values = [figure.labels.map((label, number) => number), ...figure.series.map((each) => each.values)];
        drawn.set(box, new uPlot(options(figure, box.clientWidth), values, box));
    }

    const sizes = new ResizeObserver((entries) => {
        for (const { target } of entries) {
            const plot = drawn.get(target);
            if (plot && plot.width !== target.clientWidth) {
                plot.setSize({ width: target.clientWidth, height: HEIGHT });
            }
        }
    });
    for (const box of boxes) {
        box.hidden = false;
        draw(box);
        sizes.observe(box);
    }

    // A canvas keeps the colours that it was drawn with.
    const redraw = () => boxes.forEach(draw);
    new MutationObserver(redraw).observe(document.documentElement, { attributeFilter: ["data-theme"] });
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
})();
