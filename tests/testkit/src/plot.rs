//! Charts as SVG: lines, steps, points and columns over numbers, and bars over names. Small enough
//! to be read in the source; what they show is what was measured, without smoothing.

use std::fmt::Write as _;

/// Size of a chart in pixels, and the room around its field.
const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 76.0;
const RIGHT: f64 = 150.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 44.0;
/// Height of one bar in a chart over names, and the room for the names.
const BAR: f64 = 15.0;
const NAMES: f64 = 330.0;
/// About so many marks on an axis.
const MARKS: f64 = 6.0;
/// Colours that people with any kind of sight tell apart (after Okabe and Ito).
const COLOURS: [&str; 7] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555"];

/// How values are drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// Joined by straight lines.
    Line,
    /// Each value holds until the next.
    Step,
    /// A dot each.
    Points,
    /// A column each, from zero up.
    Columns,
}

/// Values under one name.
#[derive(Clone, Debug)]
pub struct Series {
    /// The name, for the legend.
    pub name: String,
    /// How they are drawn.
    pub shape: Shape,
    /// Where: across, and up.
    pub points: Vec<(f64, f64)>,
}

/// A chart of numbers over numbers.
#[derive(Clone, Debug, Default)]
pub struct Chart {
    /// What it shows.
    pub title: String,
    /// What goes across, with its unit.
    pub across: String,
    /// What goes up, with its unit.
    pub up: String,
    /// The values.
    pub series: Vec<Series>,
    /// Spans across that are shaded, with the name of the shade.
    pub bands: Vec<(f64, f64)>,
    /// What the shade means.
    pub band_name: String,
    /// Whether the axis that goes up begins at zero even if all values are far from it.
    pub from_zero: bool,
}

impl Chart {
    /// The chart as an SVG document.
    pub fn svg(&self) -> String {
        let (x, y) = (self.range(|p| p.0, false), self.range(|p| p.1, self.from_zero));
        let field = Field { x, y };
        let mut out = head(WIDTH, HEIGHT, &self.title);
        for (from, to) in &self.bands {
            let (left, right) = (field.x(*from), field.x(*to));
            let (width, height) = ((right - left).max(0.5), HEIGHT - TOP - BOTTOM);
            let style = r##"fill="#f3d9a4" fill-opacity="0.5""##;
            let _ = writeln!(
                out,
                r#"<rect x="{left:.1}" y="{TOP}" width="{width:.1}" height="{height}" {style}/>"#
            );
        }
        self.axes(&field, &mut out);
        for (series, colour) in self.series.iter().zip(COLOURS.iter().cycle()) {
            draw(series, &field, colour, &mut out);
        }
        self.legend(&mut out);
        out + "</svg>\n"
    }

    /// From the least to the greatest value of a kind, with a little air above.
    fn range(&self, of: fn(&(f64, f64)) -> f64, zero: bool) -> (f64, f64) {
        let values = self.series.iter().flat_map(|series| &series.points).map(of);
        let values = values.filter(|value| value.is_finite());
        let (least, most) = values
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                (low.min(value), high.max(value))
            });
        match least <= most {
            true if zero => (least.min(0.0), if most > 0.0 { most * 1.05 } else { 1.0 }),
            true if most > least => (least, most + (most - least) * 0.02),
            true => (least - 0.5, most + 0.5),
            false => (0.0, 1.0),
        }
    }

    fn axes(&self, field: &Field, out: &mut String) {
        let (right, bottom) = (WIDTH - RIGHT, HEIGHT - BOTTOM);
        for mark in marks(field.y) {
            let y = field.y(mark);
            line(out, (LEFT, y), (right, y), "#dddddd");
            text(out, (LEFT - 6.0, y + 4.0), "end", &number(mark));
        }
        for mark in marks(field.x) {
            let x = field.x(mark);
            line(out, (x, bottom), (x, bottom + 4.0), "#333333");
            text(out, (x, bottom + 17.0), "middle", &number(mark));
        }
        line(out, (LEFT, bottom), (right, bottom), "#333333");
        line(out, (LEFT, TOP), (LEFT, bottom), "#333333");
        text(out, ((LEFT + right) / 2.0, HEIGHT - 8.0), "middle", &self.across);
        let (x, y) = (16.0, (TOP + bottom) / 2.0);
        let turned = format!(r#"transform="rotate(-90 {x} {y})""#);
        let up = escaped(&self.up);
        let _ = writeln!(out, r#"<text x="{x}" y="{y}" text-anchor="middle" {turned}>{up}</text>"#);
    }

    fn legend(&self, out: &mut String) {
        let x = WIDTH - RIGHT + 12.0;
        let mut y = TOP + 8.0;
        for (series, colour) in self.series.iter().zip(COLOURS.iter().cycle()) {
            swatch(out, (x, y - 9.0), colour);
            text(out, (x + 16.0, y), "start", &series.name);
            y += 17.0;
        }
        if !self.bands.is_empty() {
            swatch(out, (x, y - 9.0), "#f3d9a4");
            text(out, (x + 16.0, y), "start", &self.band_name);
        }
    }
}

/// Where values lie on the sheet.
struct Field {
    x: (f64, f64),
    y: (f64, f64),
}

impl Field {
    fn x(&self, value: f64) -> f64 {
        let part = (value - self.x.0) / (self.x.1 - self.x.0);
        LEFT + part.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        let part = (value - self.y.0) / (self.y.1 - self.y.0);
        HEIGHT - BOTTOM - part.clamp(0.0, 1.0) * (HEIGHT - TOP - BOTTOM)
    }
}

fn draw(series: &Series, field: &Field, colour: &str, out: &mut String) {
    let points = series.points.iter().filter(|p| p.0.is_finite() && p.1.is_finite());
    let places: Vec<(f64, f64)> = points.map(|p| (field.x(p.0), field.y(p.1))).collect();
    match series.shape {
        Shape::Points => {
            for (x, y) in places {
                let _ = writeln!(out, r#"<circle cx="{x:.1}" cy="{y:.1}" r="2" fill="{colour}"/>"#);
            }
        }
        Shape::Columns => {
            let bottom = field.y(0.0);
            for (x, y) in places {
                let style = format!(r#"stroke="{colour}" stroke-width="4""#);
                let _ = writeln!(
                    out,
                    r#"<line x1="{x:.1}" y1="{bottom:.1}" x2="{x:.1}" y2="{y:.1}" {style}/>"#
                );
            }
        }
        Shape::Line | Shape::Step => {
            let mut path = String::new();
            for (i, (x, y)) in places.iter().enumerate() {
                let _ = match (i, series.shape) {
                    (0, _) => write!(path, "M{x:.1} {y:.1}"),
                    (_, Shape::Step) => write!(path, "H{x:.1}V{y:.1}"),
                    _ => write!(path, "L{x:.1} {y:.1}"),
                };
            }
            let style = format!(r#"fill="none" stroke="{colour}" stroke-width="1.5""#);
            let _ = writeln!(out, r#"<path d="{path}" {style}/>"#);
        }
    }
}

/// Bars over names, on a logarithmic axis: for values of one unit that lie far apart.
#[derive(Clone, Debug, Default)]
pub struct Bars {
    /// What it shows.
    pub title: String,
    /// The unit.
    pub unit: String,
    /// Names and values, from the top down.
    pub bars: Vec<(String, f64)>,
}

impl Bars {
    /// The chart as an SVG document.
    pub fn svg(&self) -> String {
        let height = TOP + (BAR + 6.0) * self.bars.len() as f64 + 12.0;
        let mut out = head(WIDTH, height, &self.title);
        let positive = self.bars.iter().map(|bar| bar.1).filter(|value| *value > 0.0);
        let least = positive.clone().fold(f64::INFINITY, f64::min);
        let most = positive.fold(0.0, f64::max);
        let (from, to) =
            if most > 0.0 { (least.log10().floor() - 0.3, most.log10()) } else { (0.0, 1.0) };
        for (i, (name, value)) in self.bars.iter().enumerate() {
            let y = TOP + (BAR + 6.0) * i as f64;
            let part =
                ((value.max(f64::MIN_POSITIVE).log10() - from) / (to - from)).clamp(0.0, 1.0);
            let width = part * (WIDTH - NAMES - 110.0);
            let fill = format!(r#"fill="{}""#, COLOURS[i % COLOURS.len()]);
            text(&mut out, (NAMES - 8.0, y + 12.0), "end", name);
            let _ = writeln!(
                out,
                r#"<rect x="{NAMES}" y="{y:.1}" width="{width:.1}" height="{BAR}" {fill}/>"#
            );
            let words = format!("{} {}", number(*value), self.unit);
            text(&mut out, (NAMES + width + 6.0, y + 12.0), "start", &words);
        }
        out + "</svg>\n"
    }
}

fn head(width: f64, height: f64, title: &str) -> String {
    let size = format!(r#"width="{width}" height="{height}" viewBox="0 0 {width} {height}""#);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" {size} font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    let title = escaped(title);
    let _ = writeln!(out, r#"<text x="{LEFT}" y="20" font-weight="bold">{title}</text>"#);
    out
}

fn text(out: &mut String, at: (f64, f64), anchor: &str, words: &str) {
    let (x, y, words) = (at.0, at.1, escaped(words));
    let _ = writeln!(out, r#"<text x="{x:.1}" y="{y:.1}" text-anchor="{anchor}">{words}</text>"#);
}

fn line(out: &mut String, from: (f64, f64), to: (f64, f64), colour: &str) {
    let ends =
        format!(r#"x1="{:.1}" y1="{:.1}" x2="{:.1}" y2="{:.1}""#, from.0, from.1, to.0, to.1);
    let _ = writeln!(out, r#"<line {ends} stroke="{colour}"/>"#);
}

fn swatch(out: &mut String, at: (f64, f64), colour: &str) {
    let (x, y) = at;
    let _ = writeln!(out, r#"<rect x="{x}" y="{y}" width="10" height="10" fill="{colour}"/>"#);
}

/// Round numbers within a range.
fn marks(range: (f64, f64)) -> Vec<f64> {
    let rough = (range.1 - range.0) / MARKS;
    let power = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|step| *step >= rough);
    let step = step.unwrap_or(power);
    let first = (range.0 / step).ceil() as i64;
    let last = (range.1 / step).floor() as i64;
    // A range without an end would make marks without an end.
    (first..=last.min(first.saturating_add(50))).map(|n| n as f64 * step).collect()
}

/// A number as short as it can be.
pub fn number(value: f64) -> String {
    let size = value.abs();
    match size {
        _ if size >= 1e6 => format!("{:.1}M", value / 1e6),
        _ if size >= 100.0 || value.fract().abs() < 1e-9 => format!("{value:.0}"),
        _ if size >= 10.0 => format!("{value:.1}"),
        _ if size >= 0.1 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// Text for HTML and SVG.
pub fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_shows_every_point_within_its_field() {
        let points = vec![(0.0, 10.0), (5.0, 20.0), (10.0, f64::NAN), (9.0, 15.0)];
        let series = Series { name: "a < b".into(), shape: Shape::Points, points };
        let chart = Chart { series: vec![series], bands: vec![(1.0, 2.0)], ..Chart::default() };
        let svg = chart.svg();
        assert_eq!(svg.matches("<circle").count(), 3, "{svg}");
        assert!(svg.contains("a &lt; b") && svg.ends_with("</svg>\n"), "{svg}");
        assert!(svg.contains(&format!("cx=\"{LEFT:.1}\"")), "the first is on the left edge: {svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }

    #[test]
    fn charts_of_nothing_are_charts_too() {
        let empty = Chart::default().svg();
        assert!(!empty.contains("NaN") && !empty.contains("inf"), "{empty}");
        let bars = Bars { bars: vec![("none".into(), 0.0)], ..Bars::default() }.svg();
        assert!(!bars.contains("NaN") && !bars.contains("inf"), "{bars}");
    }

    #[test]
    fn marks_are_round_and_few() {
        assert_eq!(marks((0.0, 60.0)), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0]);
        assert_eq!(marks((0.3, 1.1)).len(), 4);
        assert_eq!(number(1234.5), "1234");
        assert_eq!(number(0.25), "0.25");
    }
}
