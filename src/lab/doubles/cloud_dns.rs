//! A double of Google Cloud DNS with one managed zone: a change is all or nothing and repeats exactly
//! what it deletes, is `pending` before it is `done`, and reaches the zone's name server after that.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use hickory_proto::rr::rdata::{CNAME, TXT};
use hickory_proto::rr::{Name, RData, RecordType};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::script::{Refusal, Script, refuse};
use super::shares::{Share, Shares};
use crate::adapters::dns::plain_name;

/// The project and the managed zone of the double.
pub const PROJECT: &str = "shop-project";
/// See [`PROJECT`].
pub const MANAGED_ZONE: &str = "shop-zone";

/// A running double. It ends with this value.
#[derive(Debug)]
pub struct CloudDnsDouble {
    /// Where its API answers.
    pub address: SocketAddr,
    /// What it answers and was asked.
    pub script: Arc<Script>,
    inside: Arc<Inside>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Inside {
    zone: String,
    /// How long after a change the name server still answers the old way.
    lag: Duration,
    script: Arc<Script>,
    kept: Mutex<Kept>,
    users: Shares,
}

#[derive(Debug, Default)]
struct Kept {
    sets: Vec<Value>,
    /// Of each change, whether it was asked about already: then it is done.
    changes: Vec<bool>,
}

impl CloudDnsDouble {
    /// Serves the API at one address and the zone at another.
    pub async fn start(
        api: SocketAddr,
        name_server: SocketAddr,
        zone: &str,
        lag: Duration,
    ) -> io::Result<Self> {
        let script = Arc::<Script>::default();
        let inside = Arc::new(Inside {
            zone: format!("{}.", zone.trim_end_matches('.')),
            lag,
            script: Arc::clone(&script),
            kept: Mutex::default(),
            users: Shares::start(name_server).await?,
        });
        let listener = TcpListener::bind(api).await?;
        let address = listener.local_addr()?;
        let zone = "/dns/v1/projects/{project}/managedZones/{zone}";
        let app = Router::new()
            .route(zone, get(managed_zone))
            .route(&format!("{zone}/rrsets"), get(record_sets))
            .route(&format!("{zone}/changes"), axum::routing::post(change))
            .route(&format!("{zone}/changes/{{id}}"), get(change_status))
            .with_state(Arc::clone(&inside));
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, app).await {
                tracing::error!(%error, "the double of Cloud DNS ended");
            }
        });
        Ok(Self {
            address,
            script,
            inside,
            task,
        })
    }

    /// The zone's name server.
    pub fn name_server(&self) -> SocketAddr {
        self.inside.users.address()
    }

    /// Puts a record set there as somebody else would, in place of the one of its name and type.
    pub fn put(&self, set: Value) {
        let mut kept = self.inside.kept();
        kept.sets.retain(|own| !same_place(own, &set));
        kept.sets.push(set);
        let sets = kept.sets.clone();
        drop(kept);
        self.inside.publish(&sets);
    }

    /// The record sets as they are stored.
    pub fn sets(&self) -> Vec<Value> {
        self.inside.kept().sets.clone()
    }
}

impl Drop for CloudDnsDouble {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Inside {
    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the name server answer by these record sets.
    fn publish(&self, sets: &[Value]) {
        let mut names: BTreeMap<(Name, RecordType), Vec<Share>> = BTreeMap::new();
        for set in sets {
            if let Some((place, shares)) = shares_of(set) {
                names.insert(place, shares);
            }
        }
        self.users.hold(names);
    }

    fn knows(project: &str, zone: &str) -> Result<(), Refusal> {
        if project == PROJECT && zone == MANAGED_ZONE {
            return Ok(());
        }
        let text = format!("The 'parameters.managedZone' resource named '{zone}' does not exist.");
        Err(refuse(StatusCode::NOT_FOUND, text))
    }

    /// Deletes and adds, or says why not, and then nothing is changed.
    fn apply(&self, change: &Value) -> Result<usize, Refusal> {
        let mut kept = self.kept();
        let mut sets = kept.sets.clone();
        for (index, set) in list(change, "deletions").iter().enumerate() {
            let part = format!("entity.change.deletions[{index}]");
            let at = sets.iter().position(|own| same_place(own, set));
            let at = at.ok_or_else(|| {
                let named = text(set, "name");
                let said = format!("The '{part}' resource named '{named}' does not exist.");
                refuse(StatusCode::NOT_FOUND, said)
            })?;
            if sets.get(at).map(plain) != Some(plain(set)) {
                let said = format!("Precondition not met for '{part}'");
                return Err(refuse(StatusCode::PRECONDITION_FAILED, said));
            }
            sets.remove(at);
        }
        for (index, set) in list(change, "additions").iter().enumerate() {
            let part = format!("entity.change.additions[{index}]");
            if sets.iter().any(|own| same_place(own, set)) {
                let said = format!(
                    "The resource '{part}' named '{}' already exists",
                    text(set, "name")
                );
                return Err(refuse(StatusCode::CONFLICT, said));
            }
            if let Err(why) = self.is_allowed(set) {
                let said = format!("Invalid value for '{part}': {why}");
                return Err(refuse(StatusCode::BAD_REQUEST, said));
            }
            sets.push(set.clone());
        }
        kept.sets = sets;
        kept.changes.push(false);
        Ok(kept.changes.len())
    }

    fn is_allowed(&self, set: &Value) -> Result<(), &'static str> {
        if !text(set, "name").ends_with(&self.zone) {
            return Err("the name is not in the zone");
        }
        let plain = list(set, "rrdatas").len();
        let items = items(set);
        match (plain, items.len()) {
            (0, 0) => Err("no data"),
            (_, 0) | (0, _) => Ok(()),
            (_, _) => Err("both data and a routing policy"),
        }?;
        let negative = |item: &Value| item["weight"].as_f64().is_none_or(|weight| weight < 0.0);
        if items.iter().any(negative) {
            return Err("a weight is missing or negative");
        }
        Ok(())
    }
}

fn text<'v>(value: &'v Value, key: &str) -> &'v str {
    value[key].as_str().unwrap_or_default()
}

fn list<'v>(value: &'v Value, key: &str) -> &'v [Value] {
    value[key].as_array().map_or(&[], Vec::as_slice)
}

fn items(set: &Value) -> &[Value] {
    list(&set["routingPolicy"]["wrr"], "items")
}

fn same_place(one: &Value, other: &Value) -> bool {
    text(one, "name") == text(other, "name") && text(one, "type") == text(other, "type")
}

/// What must be equal in a deletion: numbers as numbers, and without what only answers carry.
fn plain(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let only_told = ["kind", "signatureRrdatas"];
            let fields = fields
                .iter()
                .filter(|(key, value)| !only_told.contains(&key.as_str()) && !value.is_null());
            fields
                .map(|(key, value)| (key.clone(), plain(value)))
                .collect()
        }
        Value::Array(items) => items.iter().map(plain).collect(),
        Value::Number(number) => json!(number.as_f64()),
        Value::Null | Value::Bool(_) | Value::String(_) => value.clone(),
    }
}

/// What the name server answers by a record set.
fn shares_of(set: &Value) -> Option<((Name, RecordType), Vec<Share>)> {
    let name = plain_name(text(set, "name")).ok()?;
    let kind: RecordType = text(set, "type").parse().ok()?;
    let share = |weight: &Value, of: &Value| {
        let weight = weight.as_f64().unwrap_or(1.0).ceil();
        let data = list(of, "rrdatas").iter();
        Share {
            weight: format!("{weight:.0}").parse().unwrap_or_default(),
            data: data
                .filter_map(|data| record(kind, data.as_str()?))
                .collect(),
        }
    };
    let items = items(set);
    let shares = if items.is_empty() {
        vec![share(&Value::Null, set)]
    } else {
        items
            .iter()
            .map(|item| share(&item["weight"], item))
            .collect()
    };
    Some(((name, kind), shares))
}

fn record(kind: RecordType, text: &str) -> Option<RData> {
    if kind == RecordType::A {
        text.parse().ok().map(RData::A)
    } else if kind == RecordType::AAAA {
        text.parse().ok().map(RData::AAAA)
    } else if kind == RecordType::CNAME {
        Some(RData::CNAME(CNAME(plain_name(text).ok()?)))
    } else {
        let text = text.trim_matches('"').to_owned();
        Some(RData::TXT(TXT::new(vec![text])))
    }
}

async fn managed_zone(
    State(inside): State<Arc<Inside>>,
    Path((project, zone)): Path<(String, String)>,
) -> Result<Json<Value>, Refusal> {
    inside.script.read();
    Inside::knows(&project, &zone)?;
    Ok(Json(json!({
        "kind": "dns#managedZone", "name": zone, "dnsName": inside.zone, "visibility": "public",
    })))
}

async fn record_sets(
    State(inside): State<Arc<Inside>>,
    Path((project, zone)): Path<(String, String)>,
    Query(filter): Query<BTreeMap<String, String>>,
) -> Result<Json<Value>, Refusal> {
    inside.script.read();
    Inside::knows(&project, &zone)?;
    let wanted = |set: &&Value| {
        let fits = |key: &str| {
            filter
                .get(key)
                .is_none_or(|wanted| text(set, key) == wanted)
        };
        fits("name") && fits("type")
    };
    let sets: Vec<Value> = inside.kept().sets.iter().filter(wanted).cloned().collect();
    Ok(Json(
        json!({"kind": "dns#resourceRecordSetsListResponse", "rrsets": sets}),
    ))
}

async fn change(
    State(inside): State<Arc<Inside>>,
    Path((project, zone)): Path<(String, String)>,
    body: String,
) -> Result<Response, Refusal> {
    let planned = inside.script.change(&body);
    if let Some(planned) = &planned
        && !planned.effective
    {
        return Ok(planned.clone().into_response());
    }
    Inside::knows(&project, &zone)?;
    let change: Value = serde_json::from_str(&body)
        .map_err(|error| refuse(StatusCode::BAD_REQUEST, error.to_string()))?;
    let id = inside.apply(&change)?;
    let (later, sets) = (Arc::clone(&inside), inside.kept().sets.clone());
    tokio::spawn(async move {
        tokio::time::sleep(later.lag).await;
        later.publish(&sets);
    });
    Ok(match planned {
        Some(planned) => planned.into_response(),
        None => Json(told(id, "pending")).into_response(),
    })
}

fn told(id: usize, status: &str) -> Value {
    json!({"kind": "dns#change", "id": id.to_string(), "status": status})
}

async fn change_status(
    State(inside): State<Arc<Inside>>,
    Path((project, zone, id)): Path<(String, String, String)>,
) -> Result<Json<Value>, Refusal> {
    inside.script.read();
    Inside::knows(&project, &zone)?;
    let number: usize = id.parse().unwrap_or_default();
    let mut kept = inside.kept();
    let asked = number
        .checked_sub(1)
        .and_then(|index| kept.changes.get_mut(index));
    let asked = asked.ok_or_else(|| refuse(StatusCode::NOT_FOUND, format!("no change '{id}'")))?;
    let status = if std::mem::replace(asked, true) {
        "done"
    } else {
        "pending"
    };
    Ok(Json(told(number, status)))
}
