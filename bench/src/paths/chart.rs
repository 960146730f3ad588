//! Ratios as a chart.

use std::fmt::Write as _;

/// Width of the names, of the bars and of all, in pixels.
const NAMES: f64 = 340.0;
const BARS: f64 = 440.0;
const WIDTH: f64 = NAMES + BARS + 60.0;

/// Width of a figure, and the gap on either side of it.
const FIGURE: f64 = 28.0;
const GAP: f64 = 6.0;

/// Height of a line, and that of the lines above and below the bars.
const LINE: f64 = 22.0;
const ABOVE: f64 = 46.0;
const BELOW: f64 = 30.0;

/// Least end of the axis.
const MIN_END: f64 = 2.0;

/// Colours that are readable on white and on black.
const STYLE: &str = "\
    text { font: 13px system-ui, sans-serif; fill: #1f2328 } .axis { fill: #59636e } .better { fill: #0969da } .worse { fill: #bc4c00 }\n    \
    .line { stroke: #1f2328 } .grid { stroke: #d1d9e0 }\n    \
    @media (prefers-color-scheme: dark) {\n      \
    text { fill: #f0f6fc } .axis { fill: #9198a1 } .better { fill: #4493f8 } .worse { fill: #db6d28 }\n      \
    .line { stroke: #f0f6fc } .grid { stroke: #3d444d }\n    }";

/// Returns an SVG with a bar for each ratio, and a line at 1.
pub fn svg(title: &str, bars: &[(String, f64)]) -> String {
    let longest = bars.iter().map(|(_, ratio)| *ratio).fold(MIN_END, f64::max);
    let end = (longest * 2.0).ceil() / 2.0;
    let at = |ratio: f64| NAMES + ratio / end * BARS;
    let figure_at = |ratio: f64| {
        let (place, line) = (at(ratio) + GAP, at(1.0));
        // The line would go through it.
        if place < line + GAP && place + FIGURE + GAP > line { line + GAP } else { place }
    };
    let bottom = ABOVE + bars.len() as f64 * LINE;
    let height = bottom + BELOW;
    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n  \
         <title>{title}</title>\n  <style>\n    {STYLE}\n  </style>\n  <text x=\"8\" y=\"22\" font-weight=\"bold\">{title}</text>\n"
    );
    let marks = (0..).map(|mark| f64::from(mark) * 0.5).take_while(|mark| *mark <= end);
    for mark in marks {
        let x = at(mark);
        let _ = writeln!(
            text,
            "  <line class=\"grid\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{ABOVE}\" y2=\"{bottom}\"/>\n  \
             <text class=\"axis\" x=\"{x:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{mark}</text>",
            bottom + 18.0
        );
    }
    for (number, (name, ratio)) in bars.iter().enumerate() {
        let top = ABOVE + number as f64 * LINE;
        let class = if *ratio < 1.0 { "worse" } else { "better" };
        let _ = writeln!(
            text,
            "  <text x=\"{:.1}\" y=\"{baseline:.1}\" text-anchor=\"end\">{name}</text>\n  \
             <rect class=\"{class}\" x=\"{NAMES}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"/>\n  \
             <text x=\"{:.1}\" y=\"{baseline:.1}\">{ratio:.2}</text>",
            NAMES - 8.0,
            top + 3.0,
            at(*ratio) - NAMES,
            LINE - 6.0,
            figure_at(*ratio),
            baseline = top + 16.0,
        );
    }
    let x = at(1.0);
    let _ = writeln!(
        text,
        "  <line class=\"line\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{bottom}\" stroke-width=\"2\"/>\n</svg>",
        ABOVE - 6.0
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bar_is_as_long_as_its_ratio() {
        let chart = svg("A title", &[("one".into(), 1.0), ("half".into(), 0.5)]);
        assert!(chart.contains("class=\"better\" x=\"340\" y=\"49.0\" width=\"220.0\""), "{chart}");
        assert!(chart.contains("class=\"worse\" x=\"340\" y=\"71.0\" width=\"110.0\""), "{chart}");
        assert!(chart.contains("class=\"line\" x1=\"560.0\""), "{chart}");
        assert!(chart.contains(">0.50</text>") && chart.contains(">half</text>"), "{chart}");
    }

    #[test]
    fn figure_stands_behind_its_bar_but_never_on_the_line() {
        for (ratio, place) in [(0.5, 456.0), (0.9, 566.0), (0.99, 566.0), (1.0, 566.0), (1.1, 588.0)] {
            let chart = svg("A title", &[("one".into(), ratio)]);
            assert!(chart.contains(&format!("<text x=\"{place:.1}\" y=\"62.0\">{ratio:.2}<")), "{chart}");
        }
    }
}
