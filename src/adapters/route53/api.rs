//! The three calls to Route 53, and what their errors mean. Holds nothing about sites.
//!
//! Which error has which form was tried with this SDK against a stub that answered with each of them
//! (throttling has no variant of its own, a cut or empty body has no code), never against AWS.

use std::fmt;
use std::time::Duration;

use aws_config::retry::RetryConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_sdk_route53::Client;
use aws_sdk_route53::config::Credentials;
use aws_sdk_route53::config::http::HttpResponse;
use aws_sdk_route53::error::{DisplayErrorContext, ProvideErrorMetadata, SdkError};
use aws_sdk_route53::types::{
    Change, ChangeAction, ChangeBatch, ChangeInfo, ChangeStatus, ResourceRecord, ResourceRecordSet,
    RrType,
};

use super::records::Stored;
use crate::ports::EffectError;

/// Route 53 is one service for all regions; its requests are signed for this one.
const REGION: &str = "us-east-1";
/// Records asked for at once: the most that a name and type can have as weighted records.
const PAGE: i32 = 100;
/// How many pages are read before something is wrong: records beyond the first page of a name
/// and type cannot exist, two more are for what a paging server may do.
const PAGES: usize = 3;

/// Whose right is used.
#[derive(Clone)]
pub enum Access {
    /// What the machine has: environment, profile, web identity, container or instance role.
    Default,
    /// A key written down, such as one for emergencies kept outside federation.
    Key {
        /// The id of the key.
        id: String,
        /// Its secret.
        secret: String,
    },
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Access::Default => f.write_str("Default"),
            Access::Key { id, .. } => f
                .debug_struct("Key")
                .field("id", id)
                .finish_non_exhaustive(),
        }
    }
}

/// A connection to the service.
#[derive(Debug)]
pub struct Api {
    client: Client,
}

impl Api {
    /// Prepares the client; the service is called with the first use. `endpoint` replaces the
    /// service's address; `timeout` holds for one call. No call is ever repeated here.
    pub async fn connect(access: Access, endpoint: Option<&str>, timeout: Duration) -> Self {
        let limits = TimeoutConfig::builder()
            .connect_timeout(timeout)
            .operation_timeout(timeout)
            .build();
        let mut loader = aws_config::defaults(BehaviorVersion::latest())
            .region(Region::from_static(REGION))
            .retry_config(RetryConfig::disabled())
            .timeout_config(limits);
        if let Access::Key { id, secret } = access {
            loader = loader.credentials_provider(Credentials::new(id, secret, None, None, "key"));
        }
        if let Some(endpoint) = endpoint {
            loader = loader.endpoint_url(endpoint);
        }
        let client = Client::new(&loader.load().await);
        Self { client }
    }

    /// The record sets of exactly this name and type.
    pub(super) async fn list(
        &self,
        zone_id: &str,
        name: &str,
        kind: &str,
    ) -> Result<Vec<Stored>, EffectError> {
        let mut found = Vec::new();
        let mut identifier = None;
        for _ in 0..PAGES {
            let request = self
                .client
                .list_resource_record_sets()
                .hosted_zone_id(zone_id)
                .start_record_name(name)
                .start_record_type(RrType::from(kind))
                .set_start_record_identifier(identifier)
                .max_items(PAGE);
            // Nothing was changed, whatever became of the question: it can be put again.
            let page = request.send().await.map_err(|error| {
                let verdict = verdict(&error);
                if let EffectError::Unknown(text) = verdict {
                    EffectError::Failed(text)
                } else {
                    verdict
                }
            })?;
            let same = |at: &str, of: &RrType| plain(at) == plain(name) && of.as_str() == kind;
            for set in page.resource_record_sets() {
                if !same(set.name(), set.r#type()) {
                    return Ok(found);
                }
                found.push(stored(set));
            }
            let next = page.next_record_name().zip(page.next_record_type());
            if !page.is_truncated() || !next.is_some_and(|(at, of)| same(at, of)) {
                return Ok(found);
            }
            identifier = page.next_record_identifier().map(str::to_owned);
        }
        Err(EffectError::Refused(format!(
            "`{name}` has more than {PAGES} pages of records"
        )))
    }

    /// Deletes and creates in one batch, all or nothing. The id of the change.
    pub(super) async fn swap(
        &self,
        zone_id: &str,
        old: impl Iterator<Item = &Stored>,
        new: impl Iterator<Item = &Stored>,
        comment: &str,
    ) -> Result<String, EffectError> {
        let deletes = old.map(|record| change(ChangeAction::Delete, record));
        let creates = new.map(|record| change(ChangeAction::Create, record));
        let changes = deletes.chain(creates).collect::<Result<Vec<_>, _>>()?;
        let batch = ChangeBatch::builder()
            .set_changes(Some(changes))
            .set_comment((!comment.is_empty()).then(|| comment.to_owned()))
            .build()
            .map_err(unsendable)?;
        let request = self
            .client
            .change_resource_record_sets()
            .hosted_zone_id(zone_id)
            .change_batch(batch);
        let done = request.send().await.map_err(|error| verdict(&error))?;
        done.change_info()
            .map(|info| info.id().to_owned())
            .ok_or_else(|| EffectError::Unknown("Route 53 answers without a change id".into()))
    }

    /// Whether every name server of the zone has the change.
    pub(super) async fn is_in_sync(&self, change: &str) -> Result<bool, EffectError> {
        let request = self.client.get_change().id(change);
        let seen = request.send().await.map_err(|error| verdict(&error))?;
        let status = seen.change_info().map(ChangeInfo::status);
        Ok(status == Some(&ChangeStatus::Insync))
    }
}

/// Names as they can be compared: Route 53 adds the final dot.
fn plain(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

fn stored(set: &ResourceRecordSet) -> Stored {
    let beyond = [
        ("an alias", set.alias_target().is_some()),
        ("a region", set.region().is_some()),
        ("a location", set.geo_location().is_some()),
        ("a place", set.geo_proximity_location().is_some()),
        ("address ranges", set.cidr_routing_config().is_some()),
        ("a failover role", set.failover().is_some()),
        ("several answers", set.multi_value_answer().is_some()),
        (
            "a traffic policy",
            set.traffic_policy_instance_id().is_some(),
        ),
    ];
    let values = set.resource_records().iter();
    Stored {
        name: set.name().to_owned(),
        kind: set.r#type().as_str().to_owned(),
        set_identifier: set.set_identifier().map(str::to_owned),
        weight: set.weight(),
        ttl: set.ttl(),
        values: values.map(|record| record.value().to_owned()).collect(),
        health_check: set.health_check_id().map(str::to_owned),
        beyond: beyond
            .iter()
            .find(|(_, is)| *is)
            .map(|(what, _)| (*what).to_owned()),
    }
}

fn change(action: ChangeAction, record: &Stored) -> Result<Change, EffectError> {
    let value = |value: &String| ResourceRecord::builder().value(value).build();
    let values = record
        .values
        .iter()
        .map(value)
        .collect::<Result<Vec<_>, _>>();
    let set = ResourceRecordSet::builder()
        .name(&record.name)
        .r#type(RrType::from(record.kind.as_str()))
        .set_set_identifier(record.set_identifier.clone())
        .set_weight(record.weight)
        .set_ttl(record.ttl)
        .set_resource_records(Some(values.map_err(unsendable)?))
        .set_health_check_id(record.health_check.clone())
        .build()
        .map_err(unsendable)?;
    let change = Change::builder().action(action).resource_record_set(set);
    change.build().map_err(unsendable)
}

fn unsendable(cause: impl fmt::Display) -> EffectError {
    EffectError::Refused(format!("the change cannot be written: {cause}"))
}

/// Certainly not done, and worth another try: the account's shared limits, another change in
/// flight, credentials that are being renewed.
const AGAIN: [&str; 6] = [
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
    "RequestLimitExceeded",
    "PriorRequestNotComplete",
    "ExpiredToken",
];
/// The signature's time is judged by the service's clock.
const CLOCK: [&str; 3] = [
    "RequestExpired",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
];
/// The rights do not suffice.
const RIGHTS: [&str; 4] = [
    "AccessDenied",
    "AccessDeniedException",
    "InvalidClientTokenId",
    "UnrecognizedClientException",
];
/// A deletion did not match, or a creation met a record that was there.
const MISMATCH: &str = "InvalidChangeBatch";

/// What an error means for the change that was asked for.
fn verdict<E>(error: &SdkError<E, HttpResponse>) -> EffectError
where
    E: ProvideErrorMetadata + std::error::Error + 'static,
{
    let Some((service, status)) = error
        .as_service_error()
        .zip(error.raw_response().map(|raw| raw.status().as_u16()))
    else {
        let text = format!("Route 53: {}", DisplayErrorContext(error));
        return if matches!(error, SdkError::ConstructionFailure(_)) {
            EffectError::Refused(text)
        } else {
            EffectError::Unknown(text)
        };
    };
    let code = service.code().unwrap_or_default();
    let message = service.message().unwrap_or_default();
    let text = format!("Route 53 answers {status} `{code}`: {message}");
    if status >= 500 {
        EffectError::Unknown(text)
    } else if AGAIN.contains(&code) || status == 429 {
        EffectError::Failed(text)
    } else if code == MISMATCH || (code.is_empty() && body_names(error, MISMATCH)) {
        EffectError::Conflict(text)
    } else if CLOCK.contains(&code) {
        EffectError::Refused(format!(
            "{text}: check the secret key and this machine's clock (NTP)"
        ))
    } else if RIGHTS.contains(&code) {
        EffectError::Refused(format!(
            "{text}: allow `route53:ChangeResourceRecordSets`, `route53:ListResourceRecordSets` \
             and `route53:GetChange`"
        ))
    } else {
        EffectError::Refused(text)
    }
}

/// Whether the raw body names an error: an old form of the service's errors has no code.
fn body_names<E>(error: &SdkError<E, HttpResponse>, name: &str) -> bool {
    let body = error.raw_response().and_then(|raw| raw.body().bytes());
    body.is_some_and(|body| String::from_utf8_lossy(body).contains(name))
}
