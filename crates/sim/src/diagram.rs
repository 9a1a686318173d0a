//! A space-time diagram of a run's last moments: one self-contained HTML page, without scripts and without other files.
//!
//! Time runs down, one column per process; a slanted line is a message, a cross is where one was refused, a line that ends
//! halfway is one that never arrived, a bar is a client's request from its arrival to its end. Equal distances are not equal times: a pause is drawn short, so that what happens close
//! together can be told apart. Source: Lamport, CACM 1978, figure 1.

use core::fmt::Write;
use std::collections::BTreeMap;

use replikit_core::{NodeId, Time, Token};

use crate::chronicle::{Chronicle, Happening, Line};

/// Distance between columns, in pixels.
const COLUMN: f64 = 170.0;
const LEFT: f64 = 110.0;
const TOP: f64 = 56.0;
/// Distance between two different times, in pixels.
const STEP_MIN: f64 = 7.0;
const STEP_MAX: f64 = 42.0;
/// Lanes for requests beside a node, and their width in pixels.
const LANES_MAX: usize = 6;
const LANE: f64 = 9.0;
const KINDS: usize = 8;

/// What stands above the diagram.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Caption {
    /// The page's title.
    pub title: String,
    /// What was violated, in a sentence.
    pub violation: String,
    /// More lines: settings, how to see it again.
    pub notes: Vec<String>,
}

/// Writes the page.
#[must_use]
pub fn diagram(nodes: u32, chronicle: &Chronicle, caption: &Caption) -> String {
    Drawing::new(nodes, chronicle).page(chronicle, caption)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// What tells actions apart: what stands behind the ids that they begin with.
fn telling(what: &str) -> &str {
    ["event: ", "op: "].iter().find_map(|name| Some(what.split_once(name)?.1)).unwrap_or(what)
}

/// The kind of a message: the first word of what it is.
fn kind(what: &str) -> &str {
    what.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Arrived(Time),
    Refused(Time),
}

struct Sent {
    from: NodeId,
    to: NodeId,
    at: Time,
    text: String,
    // More than one when it was doubled, none when it was lost or is still under way.
    ends: Vec<End>,
}

struct Asked {
    node: NodeId,
    at: Time,
    text: String,
    end: Option<(Time, String)>,
    lane: usize,
}

struct Drawing {
    nodes: u32,
    places: BTreeMap<Time, f64>,
    height: f64,
    messages: BTreeMap<u64, Sent>,
    requests: Vec<(Token, Asked)>,
    lives: Vec<(NodeId, Time, bool)>,
    notes: Vec<(NodeId, Time, String, &'static str)>,
    kinds: Vec<String>,
}

impl Drawing {
    fn new(nodes: u32, chronicle: &Chronicle) -> Self {
        let mut drawing = Self {
            nodes,
            places: BTreeMap::new(),
            height: TOP,
            messages: BTreeMap::new(),
            requests: Vec::new(),
            lives: Vec::new(),
            notes: Vec::new(),
            kinds: Vec::new(),
        };
        for line in chronicle.lines() {
            drawing.take(line);
        }
        drawing.lay_out();
        drawing
    }

    fn take(&mut self, line: &Line) {
        let &Line { at, node, ref what } = line;
        self.places.insert(at, 0.0);
        match what {
            Happening::Sent { message, to, text } => {
                if !self.kinds.iter().any(|known| known == kind(text)) {
                    self.kinds.push(kind(text).to_owned());
                }
                let sent = Sent { from: node, to: *to, at, text: text.clone(), ends: Vec::new() };
                self.messages.insert(*message, sent);
            }
            // What was sent before the first line that is kept has no beginning to draw from.
            Happening::Arrived { message, .. } => self.end(*message, End::Arrived(at)),
            Happening::Refused { message, .. } => self.end(*message, End::Refused(at)),
            Happening::Requested { token, text } => {
                let open = self.requests.iter().filter(|(_, other)| other.node == node && other.end.is_none());
                let taken: Vec<usize> = open.map(|(_, other)| other.lane).collect();
                let lane = (0..LANES_MAX).find(|lane| !taken.contains(lane)).unwrap_or(LANES_MAX - 1);
                self.requests.push((*token, Asked { node, at, text: text.clone(), end: None, lane }));
            }
            Happening::Ended { token, text } => {
                let open = self.requests.iter_mut().rev().find(|(of, asked)| of == token && asked.node == node);
                if let Some((_, asked)) = open {
                    asked.end = Some((at, text.clone()));
                }
            }
            Happening::Started => self.lives.push((node, at, true)),
            Happening::Crashed => {
                self.lives.push((node, at, false));
                for (_, asked) in &mut self.requests {
                    if asked.node == node && asked.end.is_none() {
                        asked.end = Some((at, "never answered: the process ended".to_owned()));
                    }
                }
            }
            Happening::Did { text } => self.notes.push((node, at, text.clone(), "did")),
            Happening::Stored { text } => self.notes.push((node, at, text.clone(), "stored")),
            Happening::Fault { text } => self.notes.push((node, at, text.clone(), "fault")),
        }
    }

    fn end(&mut self, message: u64, end: End) {
        if let Some(sent) = self.messages.get_mut(&message) {
            sent.ends.push(end);
        }
    }

    /// Gives each time its place: the logarithm of a pause, within limits.
    fn lay_out(&mut self) {
        let (mut y, mut before) = (TOP, None);
        for (at, place) in &mut self.places {
            if let Some(before) = before {
                let micros = at.since(before).as_secs_f64() * 1e6;
                y += (STEP_MIN + 6.0 * (1.0 + micros).log10()).min(STEP_MAX);
            }
            *place = y;
            before = Some(*at);
        }
        self.height = y + 40.0;
    }

    fn y(&self, at: Time) -> f64 {
        self.places.get(&at).copied().unwrap_or(TOP)
    }

    fn x(node: NodeId) -> f64 {
        LEFT + COLUMN * (f64::from(node.0) - 0.5)
    }

    fn colour(&self, what: &str) -> usize {
        self.kinds.iter().position(|known| known == kind(what)).unwrap_or(0) % KINDS
    }

    fn page(&self, chronicle: &Chronicle, caption: &Caption) -> String {
        let width = LEFT + COLUMN * f64::from(self.nodes) + 60.0;
        let mut html = String::new();
        let title = escape(&caption.title);
        let _ = write!(
            html,
            "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\"><title>{title}</title>\n<style>{STYLE}</style>\
             </head><body>\n<h1>{title}</h1>\n<p class=\"violation\">{}</p>\n",
            escape(&caption.violation)
        );
        for note in &caption.notes {
            let _ = writeln!(html, "<p><code>{}</code></p>", escape(note));
        }
        html.push_str("<p class=\"legend\">");
        for (at, kind) in self.kinds.iter().enumerate() {
            let _ = write!(html, "<span class=\"k{}\">&#9644; {}</span> ", at % KINDS, escape(kind));
        }
        html.push_str("&#10005; refused as damaged; dashed: never arrived; bars: requests (green answered, amber unknown, grey rejected)</p>\n");
        let _ = writeln!(
            html,
            "<div class=\"sheet\"><svg role=\"img\" aria-label=\"space-time diagram\" width=\"{width:.0}\" height=\"{:.0}\" \
             viewBox=\"0 0 {width:.0} {:.0}\">",
            self.height, self.height
        );
        self.draw_times(&mut html, width);
        self.draw_lives(&mut html);
        self.draw_messages(&mut html);
        self.draw_requests(&mut html);
        self.draw_notes(&mut html);
        let _ = writeln!(
            html,
            "<line class=\"end\" x1=\"0\" x2=\"{width:.0}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/></svg></div>",
            y = self.height - 30.0
        );
        self.list(&mut html, chronicle);
        html.push_str("</body></html>\n");
        html
    }

    fn draw_times(&self, html: &mut String, width: f64) {
        let mut free_from = 0.0;
        for (at, &y) in &self.places {
            if y >= free_from {
                let _ = writeln!(
                    html,
                    "<text class=\"time\" x=\"4\" y=\"{:.1}\">{:.3} ms</text><line class=\"grid\" x1=\"{LEFT}\" x2=\"{width:.0}\" \
                     y1=\"{y:.1}\" y2=\"{y:.1}\"/>",
                    y + 3.0,
                    at.since(Time::ZERO).as_secs_f64() * 1e3
                );
                free_from = y + 28.0;
            }
        }
    }

    fn draw_lives(&self, html: &mut String) {
        let end = self.height - 30.0;
        for node in (1..=self.nodes).map(NodeId) {
            let x = Self::x(node);
            let _ = writeln!(html, "<text class=\"name\" x=\"{x:.1}\" y=\"24\">node {}</text>", node.0);
            let changes: Vec<(Time, bool)> =
                self.lives.iter().filter(|(of, ..)| *of == node).map(|&(_, at, up)| (at, up)).collect();
            // Before its first change it was in the other state.
            let mut up = changes.first().is_none_or(|&(_, up)| !up);
            let mut from = TOP - 16.0;
            for &(at, now_up) in &changes {
                let y = self.y(at);
                life(html, x, from, y, up);
                let mark = if now_up { "&#9650; up" } else { "&#10006; crash" };
                let _ = writeln!(html, "<text class=\"mark\" x=\"{:.1}\" y=\"{:.1}\">{mark}</text>", x + 6.0, y + 4.0);
                (up, from) = (now_up, y);
            }
            life(html, x, from, end, up);
        }
    }

    fn draw_messages(&self, html: &mut String) {
        for sent in self.messages.values() {
            let title = escape(&format!("{} to {}: {}", sent.from.0, sent.to.0, sent.text));
            let class = self.colour(&sent.text);
            let _ = writeln!(html, "<g class=\"k{class}\"><title>{title}</title>");
            let (x1, y1, x2) = (Self::x(sent.from), self.y(sent.at), Self::x(sent.to));
            for end in &sent.ends {
                let (End::Arrived(at) | End::Refused(at)) = *end;
                let y2 = self.y(at);
                message(html, "message", (x1, y1), (x2, y2));
                let _ = match end {
                    End::Arrived(_) => writeln!(html, "<circle cx=\"{x2:.1}\" cy=\"{y2:.1}\" r=\"2.4\"/>"),
                    End::Refused(_) => writeln!(
                        html,
                        "<text class=\"refusal\" x=\"{:.1}\" y=\"{:.1}\">&#10005;</text>",
                        x2 - 4.0,
                        y2 + 4.0
                    ),
                };
            }
            if sent.ends.is_empty() {
                message(html, "message lost", (x1, y1), ((x1 + x2) / 2.0, y1 + 14.0));
            }
            html.push_str("</g>\n");
        }
    }

    fn draw_requests(&self, html: &mut String) {
        for (token, asked) in &self.requests {
            let x = Self::x(asked.node) - 12.0 - LANE * asked.lane as f64;
            let (y1, y2) = (self.y(asked.at), asked.end.as_ref().map_or(self.height - 30.0, |(at, _)| self.y(*at)));
            let outcome = asked.end.as_ref().map_or("not ended", |(_, outcome)| outcome.as_str());
            let class = match kind(outcome) {
                "Acked" | "Value" => "answered",
                "Rejected" => "refused",
                _ => "unknown",
            };
            let _ = writeln!(
                html,
                "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y1:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"2\"><title>{}</title></rect>",
                LANE - 3.0,
                (y2 - y1).max(4.0),
                escape(&format!("request {} at node {}: {} - {outcome}", token.0, asked.node.0, asked.text))
            );
        }
    }

    fn draw_notes(&self, html: &mut String) {
        let mut free_from = BTreeMap::new();
        for (node, at, what, class) in &self.notes {
            let (x, y) = (Self::x(*node), self.y(*at));
            let _ = write!(
                html,
                "<g class=\"note {class}\"><title>{}</title><circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\"/>",
                escape(what)
            );
            // Words where there is room for them; the rest is told under the pointer and in the list.
            let free = free_from.entry(*node).or_insert(0.0);
            if y >= *free && *class != "stored" {
                let short: String = telling(what).chars().take(24).collect();
                let _ = write!(html, "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>", x + 7.0, y + 3.5, escape(&short));
                *free = y + 11.0;
            }
            html.push_str("</g>\n");
        }
    }

    /// The same as text, newest last: for searching, and for who cannot see the drawing.
    fn list(&self, html: &mut String, chronicle: &Chronicle) {
        html.push_str("<details><summary>All of it as text</summary><pre>\n");
        for Line { at, node, what } in chronicle.lines() {
            let sent = |message: &u64| {
                self.messages.get(message).map_or_else(|| "an earlier message".to_owned(), |sent| sent.text.clone())
            };
            let line = match what {
                Happening::Sent { to, text, .. } => format!("sends to {}: {text}", to.0),
                Happening::Arrived { message, from } => format!("hears from {}: {}", from.0, sent(message)),
                Happening::Refused { message, from } => format!("refuses from {}: {}", from.0, sent(message)),
                Happening::Requested { token, text } => format!("request {}: {text}", token.0),
                Happening::Ended { token, text } => format!("request {} ended: {text}", token.0),
                Happening::Did { text } => text.clone(),
                Happening::Stored { text } => format!("storage: {text}"),
                Happening::Started => "up".to_owned(),
                Happening::Crashed => "crash".to_owned(),
                Happening::Fault { text } => format!("fault: {text}"),
            };
            let _ =
                writeln!(html, "{:>12.3} ms  {}  {}", at.since(Time::ZERO).as_secs_f64() * 1e3, node.0, escape(&line));
        }
        html.push_str("</pre></details>\n");
    }
}

fn message(html: &mut String, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
    for class in ["hit", class] {
        let _ = writeln!(html, "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>");
    }
}

fn life(html: &mut String, x: f64, from: f64, to: f64, up: bool) {
    let class = if up { "up" } else { "down" };
    let _ = writeln!(html, "<line class=\"{class}\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{from:.1}\" y2=\"{to:.1}\"/>");
}

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1c2024; --paper: #ffffff; --faint: #8a9099; --grid: #eceef1; --bad: #c22f3d; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e8eb; --paper: #16181c; --faint: #7d848e; --grid: #24272d; --bad: #ff6b78; } }
body { font: 14px/1.45 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 1.2rem; }
h1 { font-size: 1.2rem; } p { margin: .3rem 0; } .violation { color: var(--bad); font-weight: 600; } code { font-size: 12px; }
.sheet { overflow: auto; border: 1px solid var(--grid); margin-top: .8rem; } svg text { font: 11px system-ui, sans-serif; fill: var(--ink); }
.time { fill: var(--faint) !important; } .grid { stroke: var(--grid); } .name { font-weight: 600 !important; text-anchor: middle; }
.up { stroke: var(--ink); stroke-width: 1.4; } .down { stroke: var(--bad); stroke-width: 1.4; stroke-dasharray: 2 6; }
.mark { fill: var(--bad) !important; } .end { stroke: var(--bad); stroke-width: 1.6; } .hit { stroke: transparent; stroke-width: 9; }
.message { stroke: currentColor; stroke-width: 1.1; } g circle { fill: currentColor; } .lost { stroke-dasharray: 3 3; } .refusal { fill: var(--bad) !important; font-size: 12px !important; }
g:hover .message { stroke-width: 2.6; } .answered { fill: #2f9e5b; } .unknown { fill: #e0a100; } .refused { fill: var(--faint); }
.note circle { fill: var(--ink); } .stored circle { fill: var(--faint); } .fault circle { fill: var(--bad); } .fault text { fill: var(--bad); } .did text { fill: var(--faint); }
.k0 { color: #2f6fd0; } .k1 { color: #c9652b; } .k2 { color: #7a4fd0; } .k3 { color: #1f8f86; } .k4 { color: #b1408a; } .k5 { color: #6f7d1f; } .k6 { color: #8d5a3b; } .k7 { color: #46708f; }
.legend span { margin-right: .6rem; } pre { font-size: 12px; overflow: auto; }
";

#[cfg(test)]
mod tests {
    use super::*;
    use core::time::Duration;

    fn at(micros: u64) -> Time {
        Time::ZERO + Duration::from_micros(micros)
    }

    #[test]
    fn everything_is_drawn_and_what_it_says_is_escaped() {
        let mut chronicle = Chronicle::new(100);
        let (one, two) = (NodeId(1), NodeId(2));
        let text = |text: &str| text.to_owned();
        chronicle.note(at(1), one, Happening::Requested { token: Token(5), text: text("write <k>") });
        chronicle.note(at(2), one, Happening::Sent { message: 1, to: two, text: text("Append 1..=2") });
        chronicle.note(at(3), one, Happening::Sent { message: 2, to: two, text: text("Vote") });
        chronicle.note(at(4), one, Happening::Sent { message: 3, to: two, text: text("Vote again") });
        chronicle.note(at(8), two, Happening::Refused { message: 3, from: one });
        chronicle.note(at(9), two, Happening::Arrived { message: 1, from: one });
        chronicle.note(at(10), two, Happening::Crashed);
        chronicle.note(at(12), one, Happening::Did { text: text("Event { group: g1, event: Leads }") });
        chronicle.note(at(4000), one, Happening::Ended { token: Token(5), text: text("Acked at 3") });
        let caption = Caption { title: text("seed 7"), violation: text("a & b"), notes: vec![text("again")] };
        let page = diagram(2, &chronicle, &caption);
        for wanted in [
            "seed 7",
            "a &amp; b",
            "write &lt;k&gt; - Acked at 3",
            "1 to 2: Append 1..=2",
            "&#10005;</text>",
            "crash",
            ">Leads }</text>",
        ] {
            assert!(page.contains(wanted), "{wanted} is missing");
        }
        assert!(!page.contains("<k>") && !page.contains("http"), "self-contained and escaped");
        let count = |what: &str| page.matches(what).count();
        assert_eq!((count("class=\"message\""), count("class=\"message lost\"")), (2, 1));
        assert_eq!((count("class=\"down\""), count("class=\"up\"")), (1, 2), "node 2 is down after its crash");
        assert_eq!(count("class=\"answered\""), 1);
    }

    #[test]
    fn lines_without_their_beginnings_are_no_error() {
        let mut chronicle = Chronicle::new(100);
        chronicle.note(at(1), NodeId(1), Happening::Arrived { message: 5, from: NodeId(2) });
        chronicle.note(at(2), NodeId(1), Happening::Ended { token: Token(5), text: String::new() });
        assert!(diagram(3, &chronicle, &Caption::default()).contains("node 3"));
    }
}
