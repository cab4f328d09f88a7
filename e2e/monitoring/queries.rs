//! What a PromQL expression asks for, and what a Grafana dashboard asks Prometheus.

use std::collections::BTreeSet;

use serde_json::Value;

/// Words that are followed by a list of labels in parentheses.
const WITH_LABELS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
/// Words that are no metric.
const WORDS: [&str; 9] = ["and", "or", "unless", "bool", "offset", "atan2", "inf", "nan", "start"];

/// The series that an expression selects, as they stand there, without ranges: `name`, `name{…}` or `{…}`.
pub fn selectors(expression: &str) -> BTreeSet<String> {
    let (text, mut at, mut found) = (expression.as_bytes(), 0, BTreeSet::new());
    while at < text.len() {
        match text[at] {
            b'"' | b'\'' => at = after_string(text, at),
            b'[' => at = after(text, at, b'[', b']'),
            b'{' => {
                let end = after(text, at, b'{', b'}');
                found.insert(expression[at..end].to_owned());
                at = end;
            }
            b'0'..=b'9' => {
                // A number, or a duration behind `offset`.
                while at < text.len() && (text[at].is_ascii_alphanumeric() || text[at] == b'.') {
                    at += 1;
                }
            }
            byte if is_word(byte) => {
                let begin = at;
                while at < text.len() && (is_word(text[at]) || text[at].is_ascii_digit()) {
                    at += 1;
                }
                let word = &expression[begin..at];
                // An aggregation may name its labels before what it is about.
                let rest = expression[at..].trim_start();
                let aggregates = ["by", "without"]
                    .iter()
                    .any(|word| rest.strip_prefix(word).is_some_and(|rest| rest.trim_start().starts_with('(')));
                let next =
                    text[at..].iter().position(|byte| !byte.is_ascii_whitespace()).map_or(text.len(), |n| at + n);
                let opens = text.get(next).copied();
                if WITH_LABELS.contains(&word.to_lowercase().as_str()) {
                    if opens == Some(b'(') {
                        at = after(text, next, b'(', b')');
                    }
                } else if opens == Some(b'{') {
                    let end = after(text, next, b'{', b'}');
                    found.insert(format!("{word}{}", &expression[next..end]));
                    at = end;
                } else if opens != Some(b'(') && !aggregates && !WORDS.contains(&word.to_lowercase().as_str()) {
                    found.insert(word.to_owned());
                }
            }
            _ => at += 1,
        }
    }
    found
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte == b':'
}

fn after_string(text: &[u8], from: usize) -> usize {
    let mut at = from + 1;
    while at < text.len() && text[at] != text[from] {
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(text.len())
}

/// Behind the bracket that closes the one at `from`.
fn after(text: &[u8], from: usize, open: u8, close: u8) -> usize {
    let (mut at, mut depth) = (from, 0);
    while at < text.len() {
        match text[at] {
            b'"' | b'\'' => {
                at = after_string(text, at);
                continue;
            }
            byte if byte == open => depth += 1,
            byte if byte == close => depth -= 1,
            _ => {}
        }
        at += 1;
        if depth == 0 {
            break;
        }
    }
    at
}

/// Panels that are no rows.
pub fn panels(dashboard: &Value) -> Vec<&Value> {
    dashboard["panels"].as_array().unwrap().iter().filter(|panel| panel["type"] != "row").collect()
}

/// Every query of every panel, with the panel's title, as written.
pub fn queries(dashboard: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let targets = panels(dashboard).into_iter().flat_map(|panel| {
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        targets.into_iter().map(move |target| (text(&panel["title"]), text(&target["expr"])))
    });
    targets.collect()
}

/// What Grafana asks for the choice "All", with so long a `$__rate_interval`.
pub fn substituted(query: &str, rate_interval: &str) -> String {
    query.replace("$__rate_interval", rate_interval).replace("$namespace", ".*").replace("$job", "praetor")
}

/// What is wrong with a dashboard that no query shows.
pub fn structure(dashboard: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut ids = BTreeSet::new();
    let mut cells = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        let title = panel["title"].as_str().unwrap_or_default();
        if title.is_empty() || !ids.insert(panel["id"].as_u64()) {
            wrong.push(format!("panel {} '{title}': every panel has a title and an id of its own", panel["id"]));
        }
        let [x, y, w, h] = ["x", "y", "w", "h"].map(|side| panel["gridPos"][side].as_u64().unwrap_or(99));
        let free = (x..x + w).flat_map(|x| (y..y + h).map(move |y| (x, y))).all(|cell| cells.insert(cell));
        if !free || x + w > 24 {
            wrong.push(format!("'{title}' lies over another panel, or beyond the right edge"));
        }
        if panel["type"] == "row" {
            continue;
        }
        if panel["datasource"]["uid"] != "${datasource}" {
            wrong.push(format!("'{title}' does not use the variable datasource"));
        }
        if panel["fieldConfig"]["defaults"]["unit"].as_str().is_none() {
            wrong.push(format!("'{title}' has no unit"));
        }
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        let names: BTreeSet<_> = targets.iter().filter_map(|target| target["refId"].as_str()).collect();
        if targets.is_empty() || names.len() != targets.len() {
            wrong.push(format!("'{title}' has no queries, or some of one name"));
        }
    }
    for (title, query) in queries(dashboard) {
        let all = selectors(&query);
        let chosen = |s: &String| s.contains("namespace=~\"$namespace\"") && s.contains("job=~\"$job\"");
        if all.is_empty() || !all.iter().all(chosen) {
            wrong.push(format!("'{title}' asks for series beyond the chosen namespace and job: {query}"));
        }
        if substituted(&query, "1m").contains('$') {
            wrong.push(format!("'{title}' uses a variable that nobody sets: {query}"));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn selectors_are_found() {
        let found = |text: &str| selectors(text).into_iter().collect::<Vec<_>>();
        assert_eq!(
            found(r#"sum by (a, b) (rate(x_total{c=~"2}|[3]", d!=""}[5m] offset 1h)) / 2e3 > bool 0.5"#),
            [r#"x_total{c=~"2}|[3]", d!=""}"#]
        );
        assert_eq!(
            found("a:b:c > 1 and on (namespace) group_left () count by (namespace) (y) or absent(z)"),
            ["a:b:c", "y", "z"]
        );
        assert_eq!(found(r#"{__name__=~"q.*"} unless m{}"#), ["m{}", r#"{__name__=~"q.*"}"#]);
        assert_eq!(found("histogram_quantile(0.9, sum without (x) (r_bucket)) >= 0"), ["r_bucket"]);
        assert!(found("vector(1) + time() - Inf").is_empty());
    }

    #[test]
    fn a_dashboard_with_faults_is_told_of_each() {
        let expr = r#"a{namespace=~"$namespace", job=~"$job"}"#;
        let good = json!({"panels": [
            {"id": 1, "type": "row", "title": "Row", "gridPos": {"x": 0, "y": 0, "w": 24, "h": 1}},
            {"id": 2, "type": "stat", "title": "One", "gridPos": {"x": 0, "y": 1, "w": 12, "h": 4},
             "datasource": {"uid": "${datasource}"}, "fieldConfig": {"defaults": {"unit": "s"}},
             "targets": [{"refId": "A", "expr": expr}]},
        ]});
        assert_eq!(structure(&good), Vec::<String>::new());
        let faults = [
            ("/panels/1/id", json!(1), "an id of its own"),
            ("/panels/1/gridPos/y", json!(0), "lies over another"),
            ("/panels/1/gridPos/x", json!(13), "beyond the right edge"),
            ("/panels/1/datasource/uid", json!("x"), "variable datasource"),
            ("/panels/1/fieldConfig/defaults", json!({}), "has no unit"),
            ("/panels/1/targets", json!([]), "has no queries"),
            ("/panels/1/targets/0/expr", json!(r#"a{job=~"$job"}"#), "beyond the chosen"),
            ("/panels/1/targets/0/expr", json!(format!("{expr} + $other")), "nobody sets"),
        ];
        for (place, value, said) in faults {
            let mut bad = good.clone();
            *bad.pointer_mut(place).unwrap() = value;
            let wrong = structure(&bad).join("\n");
            assert!(wrong.contains(said), "{place}: {wrong}");
        }
    }
}
