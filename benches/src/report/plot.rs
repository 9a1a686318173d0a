//! Plots as SVG: lines over two axes, and bars. Colours are variables of the page, so that one plot serves light and dark; each
//! engine has one colour everywhere, and what differs within an engine differs by dashes.
//!
//! Invariants: every text is escaped; every coordinate is finite and lies within the picture; texts stand in rows of their own
//! and cannot lie on each other.

use std::fmt::Write;

/// Width of every plot, in units of its own; a page scales it. Narrow, so that a phone shows it nearly as it is.
const WIDTH: f64 = 440.0;
const LEFT: f64 = 50.0;
const RIGHT: f64 = 14.0;
const PLOT_HEIGHT: f64 = 210.0;
/// Space above: the title, and the name of the vertical axis.
const TOP: f64 = 44.0;
const ROW: f64 = 16.0;
/// Mean width of a character of the font in use, on the safe side.
const CHARACTER: f64 = 6.3;
const DASHES: [&str; 5] = ["", "7 3", "2 3", "9 3 2 3", "4 2 1 2"];
/// More points than these are a line without dots.
const DOTS_MAX: usize = 16;

/// Colours by name, light and dark: one for each engine, and what the page itself needs.
pub const COLOURS: [(&str, &str, &str); 17] = [
    ("background", "#ffffff", "#14181d"),
    ("panel", "#f5f7f9", "#1c2229"),
    ("text", "#1b2127", "#e4e8ec"),
    ("muted", "#57606a", "#9aa5b1"),
    ("grid", "#d5dbe1", "#38424d"),
    ("link", "#0a58b0", "#7cb7ff"),
    ("bad", "#b3261e", "#ff8a80"),
    ("single-leader", "#0b62c4", "#6db3ff"),
    ("multi-leader", "#b8500a", "#ff9d5c"),
    ("leaderless", "#0d7a56", "#4fd1a1"),
    ("leaderless-cas", "#7a3fc0", "#c6a3ff"),
    ("partitioned", "#a3195b", "#ff8fc0"),
    ("partitioned-leaderless", "#4f7a0d", "#b5d14f"),
    ("partitioned-multi-leader", "#8a5a00", "#e0b14d"),
    ("single-thread", "#3d444c", "#c3c9cf"),
    ("shared-memory", "#6b747d", "#98a2ad"),
    ("shared-disk", "#9099a2", "#6f7983"),
];

/// The colours as variables of a style sheet, for light and dark.
#[must_use]
pub fn colours() -> String {
    let variables = |of: fn(&(&str, &str, &str)) -> (String, String)| {
        COLOURS.iter().map(of).map(|(name, value)| format!("--{name}:{value};")).collect::<String>()
    };
    let light = variables(|(name, light, _)| ((*name).to_owned(), (*light).to_owned()));
    let dark = variables(|(name, _, dark)| ((*name).to_owned(), (*dark).to_owned()));
    format!(":root{{{light}color-scheme:light dark}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}")
}

/// The style of all plots.
pub const STYLE: &str = "svg.plot text{font:11.5px system-ui,sans-serif;fill:var(--text)}\
svg.plot .title{font-weight:600;font-size:13px}svg.plot .axis{fill:var(--muted)}\
svg.plot .grid{stroke:var(--grid);stroke-width:1;fill:none}svg.plot .data{stroke-width:2;fill:none}\
svg.plot .range{stroke:var(--text);stroke-width:1.2}svg.plot .mark{stroke:var(--bad);stroke-width:1.2;stroke-dasharray:4 3}\
svg.plot .bound{stroke:var(--muted);stroke-width:1.2;stroke-dasharray:5 4}svg.plot .number{fill:var(--bad);font-weight:600}";

/// A text as it may stand in HTML and SVG, in attributes as well.
#[must_use]
pub fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            // Control characters are no characters of XML.
            c if c.is_control() && c != '\n' && c != '\t' => escaped.push('\u{fffd}'),
            c => escaped.push(c),
        }
    }
    escaped
}

/// The colour of an engine; others than ours and the baselines are muted.
#[must_use]
pub fn colour(engine: &str) -> String {
    let known = COLOURS.iter().find(|(name, _, _)| *name == engine);
    format!("var(--{})", known.map_or("muted", |(name, _, _)| name))
}

/// How values become places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// From zero.
    Linear,
    /// By factors of ten; values that are not positive are left out.
    Log,
}

/// An axis.
#[derive(Clone, Debug)]
pub struct Axis {
    /// What it shows, with its unit.
    pub label: String,
    /// How.
    pub scale: Scale,
}

/// A line of a plot.
#[derive(Clone, Debug)]
pub struct Series {
    /// What it shows.
    pub name: String,
    /// Which engine, for the colour.
    pub engine: String,
    /// By ascending first coordinate.
    pub points: Vec<(f64, f64)>,
}

/// Lines over two axes.
#[derive(Clone, Debug)]
pub struct Lines {
    /// What it shows.
    pub title: String,
    /// To the right.
    pub x: Axis,
    /// Upwards.
    pub y: Axis,
    /// The lines; those of one engine are told apart by dashes, in this order.
    pub series: Vec<Series>,
    /// Moments on the horizontal axis.
    pub marks: Vec<(f64, String)>,
    /// A bound on the vertical axis.
    pub bound: Option<(f64, String)>,
    /// Whether to fill below the lines.
    pub filled: bool,
}

struct Placed {
    scale: Scale,
    low: f64,
    high: f64,
    from: f64,
    to: f64,
}

impl Placed {
    fn new(scale: Scale, values: impl Iterator<Item = f64>, from: f64, to: f64) -> Option<Self> {
        let fits = |value: &f64| value.is_finite() && (scale == Scale::Linear || *value > 0.0);
        let (low, high) = values
            .filter(fits)
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        if !low.is_finite() {
            return None;
        }
        let (low, high) = match scale {
            Scale::Linear => (low.min(0.0), if high > 0.0 { high * 1.05 } else { 1.0 }),
            Scale::Log => (10_f64.powf(low.log10().floor()), 10_f64.powf(high.log10().ceil())),
        };
        let high = if high > low { high } else { low + 1.0 };
        Some(Self { scale, low, high, from, to })
    }

    fn place(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log => (value.max(self.low) / self.low).ln() / (self.high / self.low).ln(),
        };
        self.from + share.clamp(0.0, 1.0) * (self.to - self.from)
    }

    fn ticks(&self) -> Vec<f64> {
        match self.scale {
            Scale::Linear => {
                let raw = (self.high - self.low) / 5.0;
                let power = 10_f64.powf(raw.log10().floor());
                let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|by| by * power).find(|step| *step >= raw);
                let step = step.unwrap_or(power * 10.0);
                (0..).map(|at| self.low + f64::from(at) * step).take_while(|tick| *tick <= self.high).collect()
            }
            Scale::Log => {
                let decades = (self.high / self.low).log10().round() as i32;
                let every = (decades / 7 + 1) as usize;
                let first = self.low.log10().round() as i32;
                (first..=first + decades).step_by(every).map(|power| 10_f64.powi(power)).collect()
            }
        }
    }
}

/// A number on an axis.
#[must_use]
pub fn tick(value: f64) -> String {
    let plain = |value: f64| {
        let text = format!("{value:.6}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    };
    match value.abs() {
        v if v >= 1e9 => format!("{}G", plain(value / 1e9)),
        v if v >= 1e6 => format!("{}M", plain(value / 1e6)),
        v if v >= 1e3 => format!("{}k", plain(value / 1e3)),
        v if v >= 1e-5 || v == 0.0 => plain(value),
        _ => format!("{value:.0e}"),
    }
}

/// Texts in rows, none wider than the picture; each with a sign before it.
fn rows(texts: &[(String, String)], top: f64, out: &mut String) -> f64 {
    const SIGN: f64 = 26.0;
    let (mut x, mut y) = (8.0, top);
    for (sign, text) in texts {
        let pieces = wrap(text, ((WIDTH - 16.0 - SIGN) / CHARACTER) as usize);
        let longest = pieces.iter().map(|piece| piece.chars().count()).max().unwrap_or(0);
        let width = SIGN + longest as f64 * CHARACTER + 14.0;
        if x > 8.0 && (x + width > WIDTH || pieces.len() > 1) {
            (x, y) = (8.0, y + ROW);
        }
        // Writing to a string cannot fail.
        let _ = write!(out, "<g transform=\"translate({x:.1} {y:.1})\">{sign}</g>");
        for (line, piece) in pieces.iter().enumerate() {
            let _ = write!(
                out,
                "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                x + SIGN,
                y + 4.0 + line as f64 * ROW,
                escape(piece)
            );
        }
        if pieces.len() > 1 {
            (x, y) = (8.0, y + pieces.len() as f64 * ROW);
        } else {
            x += width;
        }
    }
    if x > 8.0 { y + ROW } else { y }
}

/// A text in lines of at most so many characters, broken between words; a longer word is cut.
fn wrap(text: &str, characters: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let word: String = word.chars().take(characters).collect();
        let last = lines.last_mut().expect("there is one from the start");
        if last.is_empty() {
            *last = word;
        } else if last.chars().count() + 1 + word.chars().count() <= characters {
            last.push(' ');
            last.push_str(&word);
        } else {
            lines.push(word);
        }
    }
    lines
}

fn title(text: &str, out: &mut String) -> f64 {
    let lines = wrap(text, (WIDTH / 8.2) as usize);
    for (line, text) in lines.iter().enumerate() {
        let _ = write!(out, "<text class=\"title\" x=\"8\" y=\"{}\">{}</text>", 15.0 + line as f64 * ROW, escape(text));
    }
    (lines.len() - 1) as f64 * ROW
}

fn frame(id: &str, name: &str, height: f64, body: &str) -> String {
    format!(
        "<svg class=\"plot\" id=\"plot-{}\" viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" aria-label=\"{}\" \
         xmlns=\"http://www.w3.org/2000/svg\">{body}</svg>",
        escape(id),
        escape(name)
    )
}

impl Lines {
    /// The plot; `None` when there is no point to show.
    #[must_use]
    pub fn svg(&self, id: &str) -> Option<String> {
        let shown = |point: &(f64, f64)| {
            let fits = |value: f64, axis: &Axis| value.is_finite() && (axis.scale == Scale::Linear || value > 0.0);
            fits(point.0, &self.x) && fits(point.1, &self.y)
        };
        let points = || self.series.iter().flat_map(|series| &series.points).copied().filter(shown);
        let mut out = String::new();
        let top = TOP + title(&self.title, &mut out);
        let bottom = top + PLOT_HEIGHT;
        let marks = self.marks.iter().map(|(at, _)| *at);
        let bound = self.bound.iter().map(|(at, _)| *at);
        points().next()?;
        let x = Placed::new(self.x.scale, points().map(|point| point.0).chain(marks), LEFT, WIDTH - RIGHT)?;
        let y = Placed::new(self.y.scale, points().map(|point| point.1).chain(bound), bottom, top)?;
        self.axes(&x, &y, top, bottom, &mut out);
        let mut signs = Vec::new();
        for (at, series) in self.series.iter().enumerate() {
            let before = self.series[..at].iter().filter(|other| other.engine == series.engine).count();
            let dash = DASHES[before % DASHES.len()];
            let colour = colour(&series.engine);
            let places: Vec<(f64, f64)> =
                series.points.iter().copied().filter(shown).map(|(a, b)| (x.place(a), y.place(b))).collect();
            let (Some(first), Some(last)) = (places.first(), places.last()) else { continue };
            let mut path = String::new();
            for (at, (x, y)) in places.iter().enumerate() {
                let _ = write!(path, "{}{x:.1} {y:.1}", if at == 0 { "M" } else { "L" });
            }
            if self.filled {
                let _ = write!(
                    out,
                    "<path d=\"{path}L{:.1} {bottom:.1}L{:.1} {bottom:.1}Z\" fill=\"{colour}\" opacity=\"0.15\"/>",
                    last.0, first.0
                );
            }
            let _ = write!(out, "<path class=\"data\" d=\"{path}\" stroke=\"{colour}\" stroke-dasharray=\"{dash}\"/>");
            if places.len() <= DOTS_MAX {
                for (x, y) in &places {
                    let _ = write!(out, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>");
                }
            }
            signs.push((
                format!("<path class=\"data\" d=\"M0 0H20\" stroke=\"{colour}\" stroke-dasharray=\"{dash}\"/>"),
                series.name.clone(),
            ));
        }
        for (number, (at, what)) in self.marks.iter().enumerate() {
            let (place, number) = (x.place(*at), number + 1);
            let _ = write!(
                out,
                "<path class=\"mark\" d=\"M{place:.1} {top}V{bottom}\"/><text class=\"number\" x=\"{:.1}\" \
                 y=\"{:.1}\">{number}</text>",
                (place + 3.0).min(WIDTH - 10.0),
                top + 11.0
            );
            signs.push((
                format!("<text class=\"number\" x=\"6\" y=\"4\">{number}</text>"),
                format!("{at:.2} s: {what}"),
            ));
        }
        if let Some((at, what)) = &self.bound {
            let place = y.place(*at);
            let _ = write!(out, "<path class=\"bound\" d=\"M{LEFT} {place:.1}H{:.1}\"/>", WIDTH - RIGHT);
            signs.push(("<path class=\"bound\" d=\"M0 0H20\"/>".to_owned(), what.clone()));
        }
        let height = rows(&signs, bottom + 46.0, &mut out);
        Some(frame(id, &self.title, height, &out))
    }

    fn axes(&self, x: &Placed, y: &Placed, top: f64, bottom: f64, out: &mut String) {
        let right = WIDTH - RIGHT;
        for value in y.ticks() {
            let place = y.place(value);
            let _ = write!(
                out,
                "<path class=\"grid\" d=\"M{LEFT} {place:.1}H{right}\"/><text class=\"axis\" x=\"{:.1}\" y=\"{:.1}\" \
                 text-anchor=\"end\">{}</text>",
                LEFT - 5.0,
                place + 4.0,
                tick(value)
            );
        }
        let mut free = 0.0;
        for value in x.ticks() {
            let place = x.place(value);
            let text = tick(value);
            let _ = write!(out, "<path class=\"grid\" d=\"M{place:.1} {bottom}v4\"/>");
            let half = text.len() as f64 * CHARACTER / 2.0;
            let middle = place.min(WIDTH - half);
            if middle - half < free {
                continue;
            }
            free = middle + half + 6.0;
            let _ = write!(
                out,
                "<text class=\"axis\" x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
                bottom + 17.0
            );
        }
        let _ = write!(
            out,
            "<path class=\"grid\" d=\"M{LEFT} {top}V{bottom}H{right}\"/><text class=\"axis\" x=\"8\" y=\"{:.1}\">{}</text>\
             <text class=\"axis\" x=\"{right}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            top - 10.0,
            escape(&self.y.label),
            bottom + 32.0,
            escape(&self.x.label)
        );
    }
}

/// A bar.
#[derive(Clone, Debug)]
pub struct Bar {
    /// What it shows.
    pub label: String,
    /// Which engine, for the colour.
    pub engine: String,
    /// How long it is.
    pub value: f64,
    /// From where to where it varied.
    pub range: (f64, f64),
    /// The value, for people.
    pub shown: String,
}

/// Bars from left to right, one below the other.
#[derive(Clone, Debug)]
pub struct Bars {
    /// What they show.
    pub title: String,
    /// Their unit.
    pub label: String,
    /// The bars.
    pub bars: Vec<Bar>,
    /// A value to compare with.
    pub bound: Option<(f64, String)>,
}

impl Bars {
    /// The plot; `None` without bars.
    #[must_use]
    pub fn svg(&self, id: &str) -> Option<String> {
        const BAR: f64 = 12.0;
        /// Beside the lines of its label.
        const EACH: f64 = 20.0;
        let mut out = String::new();
        let top = TOP - 14.0 + title(&self.title, &mut out);
        let labels: Vec<Vec<String>> = self
            .bars
            .iter()
            .map(|bar| wrap(&bar.label, ((WIDTH - 20.0) / CHARACTER) as usize - bar.shown.chars().count() - 2))
            .collect();
        let height = |label: &Vec<String>| EACH + label.len() as f64 * ROW;
        let bottom = top + labels.iter().map(height).sum::<f64>();
        let values = self.bars.iter().flat_map(|bar| [bar.value, bar.range.1]);
        let bound = self.bound.iter().map(|(at, _)| *at);
        self.bars.first()?;
        let x = Placed::new(Scale::Linear, values.chain(bound), 8.0, WIDTH - RIGHT - 14.0)?;
        let right = WIDTH - RIGHT;
        let mut free = 0.0;
        for value in x.ticks() {
            let (place, text) = (x.place(value), tick(value));
            let _ = write!(out, "<path class=\"grid\" d=\"M{place:.1} {top}V{bottom}\"/>");
            let half = text.len() as f64 * CHARACTER / 2.0;
            let middle = place.clamp(half, WIDTH - half);
            if middle - half < free {
                continue;
            }
            free = middle + half + 6.0;
            let _ = write!(
                out,
                "<text class=\"axis\" x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{text}</text>",
                bottom + 14.0
            );
        }
        let mut y = top;
        for (bar, label) in self.bars.iter().zip(&labels) {
            for (line, text) in label.iter().enumerate() {
                let _ = write!(out, "<text x=\"8\" y=\"{:.1}\">{}</text>", y + 13.0 + line as f64 * ROW, escape(text));
            }
            let (from, to) = (x.place(0.0), x.place(bar.value));
            let bar_top = y + 2.0 + label.len() as f64 * ROW;
            let middle = bar_top + BAR / 2.0;
            let _ = write!(
                out,
                "<text x=\"{right}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\
                 <rect class=\"bar\" x=\"{from:.1}\" y=\"{bar_top:.1}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{}\"/>",
                y + 13.0,
                escape(&bar.shown),
                (to - from).max(1.0),
                colour(&bar.engine)
            );
            y += height(label);
            let (least, most) = (x.place(bar.range.0), x.place(bar.range.1));
            if most - least > 0.5 {
                let _ = write!(
                    out,
                    "<path class=\"range\" d=\"M{least:.1} {middle}H{most:.1}M{least:.1} {0:.1}v6M{most:.1} {0:.1}v6\"/>",
                    middle - 3.0
                );
            }
        }
        let _ = write!(
            out,
            "<text class=\"axis\" x=\"{right}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            bottom + 29.0,
            escape(&self.label)
        );
        let mut signs = Vec::new();
        if let Some((at, what)) = &self.bound {
            let place = x.place(*at);
            let _ = write!(out, "<path class=\"bound\" d=\"M{place:.1} {top}V{bottom}\"/>");
            signs.push(("<path class=\"bound\" d=\"M0 0H20\"/>".to_owned(), what.clone()));
        }
        let height = rows(&signs, bottom + 46.0, &mut out);
        Some(frame(id, &self.title, height.max(bottom + 40.0), &out))
    }
}

/// A plot that stands alone as a file, with its colours and a background.
#[must_use]
pub fn standalone(svg: &str) -> String {
    let inside = svg.find('>').map_or(svg.len(), |end| end + 1);
    let (head, body) = svg.split_at(inside);
    let style = format!("<style>{}{STYLE}</style>", colours());
    format!("{head}{style}<rect width=\"100%\" height=\"100%\" fill=\"var(--background)\"/>{body}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(points: Vec<(f64, f64)>) -> Lines {
        Lines {
            title: "a < b".to_owned(),
            x: Axis { label: "time [s]".to_owned(), scale: Scale::Linear },
            y: Axis { label: "latency [ms]".to_owned(), scale: Scale::Log },
            series: vec![Series { name: "x & y".to_owned(), engine: "single-leader".to_owned(), points }],
            marks: vec![(1.0, "\"killed\"".to_owned())],
            bound: Some((10.0, "objective".to_owned())),
            filled: false,
        }
    }

    #[test]
    fn a_plot_without_a_point_that_can_be_shown_is_none() {
        assert!(lines(Vec::new()).svg("a").is_none());
        assert!(lines(vec![(1.0, 0.0), (f64::NAN, 1.0)]).svg("a").is_none(), "zero has no place on a logarithmic axis");
        assert!(lines(vec![(1.0, 0.5)]).svg("a").is_some());
        let bars = Bars { title: String::new(), label: String::new(), bars: Vec::new(), bound: None };
        assert!(bars.svg("a").is_none());
    }

    #[test]
    fn texts_are_escaped() {
        let svg = lines(vec![(0.0, 1.0), (2.0, 100.0)]).svg("i\"d").expect("there are points");
        assert!(svg.contains("a &lt; b") && svg.contains("x &amp; y") && svg.contains("&quot;killed&quot;"), "{svg}");
        assert!(!svg.contains("i\"d"));
        assert_eq!(escape("\u{0}"), "\u{fffd}");
    }

    #[test]
    fn ticks_are_round_numbers_that_cover_the_axis() {
        let axis = Placed::new(Scale::Linear, [0.0, 47_000.0].into_iter(), 0.0, 100.0).expect("values");
        assert_eq!(
            axis.ticks().iter().map(|value| tick(*value)).collect::<Vec<_>>(),
            ["0", "10k", "20k", "30k", "40k"]
        );
        let axis = Placed::new(Scale::Log, [0.02, 30.0].into_iter(), 0.0, 100.0).expect("values");
        assert_eq!(
            axis.ticks().iter().map(|value| tick(*value)).collect::<Vec<_>>(),
            ["0.01", "0.1", "1", "10", "100"]
        );
    }

    #[test]
    fn long_texts_are_wrapped_between_words() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("aVeryLongWord b", 4), ["aVer", "b"]);
    }
}
