//! The cost of a claim over the number of queued runs, as a drawing (SVG 1.1) for the documentation.

use std::fmt::Write as _;

use super::Cost;

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 620.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 310.0;
const COLOURS: [&str; 2] = ["#1f6feb", "#d1242f"];

/// Draws a line for each engine: both axes as they are named, the numbers of rows by their logarithms.
pub fn draw(lines: &[(&str, &[Cost])]) -> String {
    let all = || lines.iter().flat_map(|(_, costs)| costs.iter());
    let most_ms = all().map(|cost| cost.median_ms).fold(0.0, f64::max);
    let top_ms = step(most_ms) * (most_ms / step(most_ms) * 1.2).ceil();
    let (low, high) = all()
        .map(|cost| (cost.rows as f64).log10())
        .fold((f64::MAX, 0.0_f64), |(low, high), rows| (low.min(rows), high.max(rows)));
    let x = |rows: u64| LEFT + ((rows as f64).log10() - low) / (high - low).max(1e-9) * (RIGHT - LEFT);
    let y = |ms: f64| BOTTOM - ms / top_ms * (BOTTOM - TOP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    text(&mut svg, (LEFT, 22.0), "start", "Cost of a claim, in ms, over the number of queued runs");
    let mut ms = 0.0;
    while ms <= top_ms + 1e-9 {
        let at = y(ms);
        let _never_fails = writeln!(svg, "<path d=\"M{LEFT} {at:.1}H{RIGHT}\" stroke=\"#d0d7de\" stroke-width=\"1\"/>");
        text(&mut svg, (LEFT - 8.0, at + 4.0), "end", format!("{ms:.3}").trim_end_matches('0').trim_end_matches('.'));
        ms += step(most_ms);
    }
    let mut rows: Vec<u64> = all().map(|cost| cost.rows).collect();
    rows.sort_unstable();
    rows.dedup();
    rows.iter().for_each(|rows| text(&mut svg, (x(*rows), BOTTOM + 18.0), "middle", &grouped(*rows)));
    for (index, ((name, costs), colour)) in lines.iter().zip(COLOURS.iter().cycle()).enumerate() {
        let points: Vec<String> =
            costs.iter().map(|cost| format!("{:.1},{:.1}", x(cost.rows), y(cost.median_ms))).collect();
        let _never_fails = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
            points.join(" ")
        );
        for cost in *costs {
            let (x, y) = (x(cost.rows), y(cost.median_ms));
            let _never_fails = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" fill=\"{colour}\"/>");
        }
        let (x, y) = (LEFT + 120.0 * index as f64, HEIGHT - 10.0);
        let _never_fails = writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"{colour}\"/>", y - 4.0);
        text(&mut svg, (x + 10.0, y), "start", name);
    }
    svg.push_str("</svg>\n");
    svg
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, text: &str) {
    let _never_fails = writeln!(svg, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\">{text}</text>");
}

/// The distance of two lines across: 1, 2 or 5 of a power of ten, so that there are at most ten.
fn step(most: f64) -> f64 {
    let power = 10f64.powf(most.max(1e-6).log10().floor() - 1.0);
    [1.0, 2.0, 5.0, 10.0]
        .map(|digit| digit * power)
        .into_iter()
        .find(|step| most / step <= 10.0)
        .unwrap_or(power * 20.0)
}

/// With a comma before each three digits.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_engine_has_its_line_and_each_number_its_place() {
        let costs = |ms: f64| [1_000, 1_000_000].map(|rows| Cost { rows, median_ms: ms, mean_ms: ms });
        let (one, other) = (costs(2.0), costs(3.5));
        let svg = draw(&[("PostgreSQL", &one), ("SQLite", &other)]);
        assert_eq!((svg.matches("<polyline").count(), svg.matches("1,000,000").count()), (2, 1), "{svg}");
        assert!(svg.contains(&format!("points=\"{LEFT:.1},")) && svg.contains(&format!("{RIGHT:.1},")), "{svg}");
    }

    #[test]
    fn lines_across_are_few_and_round() {
        for (most, wanted) in [(3.5, 0.5), (10.0, 1.0), (0.8, 0.1), (1.7, 0.2)] {
            assert!((step(most) - wanted).abs() < 1e-9, "{most}: {}", step(most));
        }
        assert_eq!([1, 1_000, 123_456_789].map(grouped), ["1", "1,000", "123,456,789"]);
    }
}
