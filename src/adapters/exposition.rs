//! What a process shows Prometheus: a list of families, each with its meaning and how it is read
//! from what the process shows anyway; written in the OpenMetrics text format, and as a page.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    CounterValueEncoder, DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue,
    GaugeValueEncoder, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use crate::engine::units::{Bytes, WallTime};

/// What every name begins with.
const PREFIX: &str = "failover";

/// The form of what is written, with its version.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Series of one name, read from a `T`.
#[derive(Debug)]
pub struct Family<T> {
    /// Its name, without what all names begin with, and without unit.
    pub name: &'static str,
    /// What is counted or measured.
    pub kind: Kind,
    /// The names of its labels, after those that every family of the process has.
    pub labels: &'static [&'static str],
    /// What it says, in a sentence.
    pub means: &'static str,
    /// Where that is read.
    pub from: &'static str,
    /// Reads it.
    pub read: fn(&T) -> Vec<Series>,
}

/// What is counted or measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A number, or a yes or no, that comes and goes.
    Gauge,
    /// A time.
    Seconds,
    /// An amount of data.
    Bytes,
    /// A number that only grows.
    Counter,
}

impl Kind {
    fn unit(self) -> Option<Unit> {
        match self {
            Kind::Gauge | Kind::Counter => None,
            Kind::Seconds => Some(Unit::Seconds),
            Kind::Bytes => Some(Unit::Bytes),
        }
    }

    fn metric_type(self) -> MetricType {
        match self {
            Kind::Gauge | Kind::Seconds | Kind::Bytes => MetricType::Gauge,
            Kind::Counter => MetricType::Counter,
        }
    }
}

/// One series: the values of the family's labels, in their order, and its own.
#[derive(Debug)]
pub struct Series {
    labels: Vec<String>,
    value: Value,
}

/// The value of a series.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Value {
    /// A number of things.
    Whole(u64),
    /// A measure in a base unit.
    Real(f64),
}

/// Not bounded, or never: an alert on "more than" fires.
pub const UNBOUNDED: Value = Value::Real(f64::INFINITY);

/// Not known, where neither more nor less would be true: no alert fires.
pub const UNKNOWN: Value = Value::Real(f64::NAN);

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Value::Whole(number)
    }
}

impl From<bool> for Value {
    fn from(is_so: bool) -> Self {
        Value::Whole(is_so.into())
    }
}

impl From<Bytes> for Value {
    fn from(bytes: Bytes) -> Self {
        Value::Whole(bytes.0)
    }
}

impl From<Duration> for Value {
    fn from(duration: Duration) -> Self {
        Value::Real(duration.as_secs_f64())
    }
}

/// Seconds since 1970.
impl From<WallTime> for Value {
    fn from(at: WallTime) -> Self {
        Duration::from_millis(at.0).into()
    }
}

/// The only series of a family without labels.
pub fn alone(value: impl Into<Value>) -> Vec<Series> {
    vec![series([], value)]
}

/// A series with the values of its labels.
pub fn series<const N: usize>(labels: [&dyn fmt::Display; N], value: impl Into<Value>) -> Series {
    Series {
        labels: labels.map(ToString::to_string).into(),
        value: value.into(),
    }
}

impl<T> Family<T> {
    /// The name of its series.
    fn full_name(&self) -> String {
        let ending = match self.kind {
            Kind::Gauge => "",
            Kind::Seconds => "_seconds",
            Kind::Bytes => "_bytes",
            Kind::Counter => "_total",
        };
        format!("{PREFIX}_{}{ending}", self.name)
    }
}

/// The labels that every series of a process has.
pub type Common = Vec<(&'static str, String)>;

/// What is shown of `of`, for one scrape.
pub fn expose<T>(families: &'static [Family<T>], common: Common, of: &T) -> Response {
    match written(families, common, of) {
        Ok(text) => ([(CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        // Writing to a String cannot fail.
        Err(fmt::Error) => axum::http::StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

fn written<T>(
    families: &'static [Family<T>],
    common: Common,
    of: &T,
) -> Result<String, fmt::Error> {
    let common = common.into_iter();
    let common = common.map(|(name, value)| (Cow::Borrowed(name), Cow::Owned(value)));
    let mut registry = Registry::with_prefix_and_labels(PREFIX, common);
    let read = families.iter().map(|family| Read {
        name: family.name,
        kind: family.kind,
        labels: family.labels,
        means: family.means,
        series: (family.read)(of),
    });
    registry.register_collector(Box::new(Scrape(read.collect())));
    let mut text = String::new();
    text::encode(&mut text, &registry)?;
    Ok(text)
}

/// A family with the series that it has now.
#[derive(Debug)]
struct Read {
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    means: &'static str,
    series: Vec<Series>,
}

#[derive(Debug)]
struct Scrape(Vec<Read>);

impl Collector for Scrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for family in &self.0 {
            let (kind, unit) = (family.kind.metric_type(), family.kind.unit());
            let (name, help) = (family.name, family.means);
            let mut metric = encoder.encode_descriptor(name, help, unit.as_ref(), kind)?;
            for series in &family.series {
                let values = series.labels.iter().map(String::as_str);
                let labels = family.labels.iter().copied().zip(values);
                let labels: Vec<(&str, &str)> = labels.collect();
                let mut metric = metric.encode_family(&labels)?;
                match family.kind {
                    Kind::Counter => {
                        metric.encode_counter::<NoLabelSet, _, u64>(&series.value, None)?;
                    }
                    Kind::Gauge | Kind::Seconds | Kind::Bytes => {
                        metric.encode_gauge(&series.value)?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl EncodeGaugeValue for Value {
    fn encode(&self, encoder: &mut GaugeValueEncoder<'_>) -> Result<(), fmt::Error> {
        match self {
            Value::Whole(number) => EncodeGaugeValue::encode(number, encoder),
            Value::Real(number) => EncodeGaugeValue::encode(number, encoder),
        }
    }
}

impl EncodeCounterValue for Value {
    fn encode(&self, encoder: &mut CounterValueEncoder<'_>) -> Result<(), fmt::Error> {
        match self {
            Value::Whole(number) => EncodeCounterValue::encode(number, encoder),
            Value::Real(number) => EncodeCounterValue::encode(number, encoder),
        }
    }
}

/// The families as a table of a page.
pub fn table<T>(families: &[Family<T>], common: &[&str]) -> String {
    let head = "| name | kind | labels | meaning | from |\n| --- | --- | --- | --- | --- |\n";
    let rows = families.iter().map(|family| {
        let kind = family.kind.metric_type();
        let labels: Vec<&str> = common.iter().chain(family.labels).copied().collect();
        format!(
            "| `{}` | {} | {} | {} | {} |\n",
            family.full_name(),
            kind.as_str(),
            labels.join(", "),
            family.means,
            family.from,
        )
    });
    std::iter::once(head.to_owned()).chain(rows).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAMILIES: &[Family<u64>] = &[
        Family {
            name: "height",
            kind: Kind::Gauge,
            labels: &[],
            means: "How high.",
            from: "here",
            read: |height| alone(*height),
        },
        Family {
            name: "age",
            kind: Kind::Seconds,
            labels: &["of"],
            means: "How old.",
            from: "there",
            read: |_| {
                vec![
                    series([&"a \"b\\\nc"], UNBOUNDED),
                    series([&"d"], Duration::from_millis(1500)),
                ]
            },
        },
        Family {
            name: "steps",
            kind: Kind::Counter,
            labels: &[],
            means: "How many.",
            from: "there",
            read: |_| alone(7),
        },
        Family {
            name: "nobody",
            kind: Kind::Bytes,
            labels: &["of"],
            means: "There is none.",
            from: "there",
            read: |_| vec![],
        },
    ];

    #[test]
    fn each_family_has_help_type_and_unit_and_no_label_breaks_its_line() {
        let common = vec![("group", "shop".to_owned())];
        let text = written(FAMILIES, common, &3).unwrap();
        let expected = [
            "# HELP failover_height How high.",
            "# TYPE failover_height gauge",
            r#"failover_height{group="shop"} 3"#,
            "# HELP failover_age_seconds How old.",
            "# TYPE failover_age_seconds gauge",
            "# UNIT failover_age_seconds seconds",
            r#"failover_age_seconds{group="shop",of="a \"b\\\nc"} inf"#,
            r#"failover_age_seconds{group="shop",of="d"} 1.5"#,
            "# HELP failover_steps How many.",
            "# TYPE failover_steps counter",
            r#"failover_steps_total{group="shop"} 7"#,
            "# HELP failover_nobody_bytes There is none.",
            "# TYPE failover_nobody_bytes gauge",
            "# UNIT failover_nobody_bytes bytes",
            "# EOF",
        ];
        assert_eq!(text.lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn the_table_has_the_names_of_the_series() {
        let table = table(FAMILIES, &["group"]);
        for row in [
            "| `failover_height` | gauge | group | How high. | here |",
            "| `failover_age_seconds` | gauge | group, of | How old. | there |",
            "| `failover_steps_total` | counter | group | How many. | there |",
        ] {
            assert!(table.lines().any(|line| line == row), "{table}");
        }
    }
}
