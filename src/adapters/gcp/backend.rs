//! Traffic by the capacity scalers of one backend service, behind a global external application load
//! balancer: 0 drains a site's backends, 1 is all of their capacity.
//!
//! A backend service has a fingerprint, and a patch with an old one is refused: that is our
//! compare-and-swap. A patch replaces the list of backends whole, so all of it is sent, as it was
//! read a moment ago, with nothing changed but scalers and notes. Zero is sent as zero: a field that
//! is left out means 1, and would switch the drained site on.
//!
//! Google takes a patch as an operation. That one is done says that it is stored, not that the
//! edges have it: only requests from outside tell.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use axum::http::Uri;
use google_cloud_compute_v1::client::{BackendServices, GlobalOperations};
use google_cloud_compute_v1::model::operation::Status;
use google_cloud_compute_v1::model::{BackendService, Operation};

use super::pool::Pool;
use super::{Access, Caller, Rehearsed, client, request_id};
use crate::adapters::dns::ON;
use crate::adapters::http::HttpProber;
use crate::engine::answer::Answer;
use crate::engine::receipt::Receipt;
use crate::engine::topology::{SiteName, TargetName};
use crate::engine::units::UnitError;
use crate::ports::{
    Clock, Confirmation, EffectError, OutsideFault, OutsideView, Still, Traffic, Versioned,
};

/// The name of an operation in a receipt.
const OPERATION: &str = "operation";

/// How often each address is entered: as many requests may meet as many edges and backends.
const SAMPLES: usize = 4;

/// What one target is made of.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The target's name.
    pub name: TargetName,
    /// The project of the load balancer.
    pub project: String,
    /// The backend service, by its name in the project.
    pub backend_service: String,
    /// The network endpoint groups or instance groups of each site: the ends of their URLs, from
    /// `zones/`, `regions/` or `global/` on. At least one each.
    pub groups: BTreeMap<SiteName, Vec<String>>,
    /// A page of the service that names the site which answers.
    pub url: Uri,
    /// The response header that does so.
    pub site_header: String,
    /// Where the load balancer takes requests: its forwarding rules. At least one.
    pub addresses: Vec<SocketAddr>,
    /// How long one call to Google may take, and one request to the service.
    pub timeout: Duration,
}

/// A traffic target in a backend service.
#[derive(Debug)]
pub struct Backend {
    settings: Settings,
    pool: Pool,
    http: HttpProber,
    caller: Caller,
    services: BackendServices,
    operations: GlobalOperations,
    rehearsed: Rehearsed,
}

impl Backend {
    /// Checks the settings; `Refused` says which one cannot work. Sends nothing. `http` makes the
    /// requests from outside.
    pub async fn new(
        settings: Settings,
        access: &Access,
        http: HttpProber,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, EffectError> {
        let pool = Pool::new(settings.groups.clone())
            .map_err(|cause| EffectError::Refused(format!("`{}`: {cause}", settings.name)))?;
        Ok(Self {
            pool,
            http,
            caller: Caller::new(access, settings.timeout, clock),
            services: client!(BackendServices::builder(), access),
            operations: client!(GlobalOperations::builder(), access),
            rehearsed: Rehearsed::default(),
            settings,
        })
    }

    fn refused(&self, cause: &str) -> EffectError {
        EffectError::Refused(format!("`{}`: {cause}", self.settings.name))
    }

    /// Sends a patch; the operation by which Google does it, and the name that we gave the request.
    async fn patch(
        &self,
        body: BackendService,
        still: Still<'_>,
    ) -> Result<(String, String), EffectError> {
        let request = request_id()?;
        let patch = self.services.patch();
        let patch = patch
            .set_project(&self.settings.project)
            .set_backend_service(&self.settings.backend_service)
            .set_request_id(request.clone())
            .set_body(body);
        self.caller.ready().await?;
        still()?;
        let operation = self.caller.change(patch.send()).await?;
        let name = operation.name.ok_or_else(|| {
            EffectError::Unknown("Google answers to a patch without an operation".to_owned())
        })?;
        Ok((name, request))
    }

    fn parse(&self, token: &str) -> Result<BackendService, EffectError> {
        serde_json::from_str(token)
            .map_err(|cause| self.refused(&format!("the token is not of this target: {cause}")))
    }

    /// The sites that answered at one address.
    async fn sample(&self, address: SocketAddr) -> Result<Answer, OutsideFault> {
        let header = self.settings.site_header.to_ascii_lowercase();
        let sites = self.settings.groups.keys();
        let mut weights: BTreeMap<SiteName, u16> = sites.map(|site| (site.clone(), 0)).collect();
        for _ in 0..SAMPLES {
            let url = &self.settings.url;
            let within = self.settings.timeout;
            let headers = [header.as_str()];
            let entered = self.http.probe_at(url, address, within, &headers);
            let headers = entered.await?.headers;
            let wrong = OutsideFault::Wrong;
            let site = headers.get(&header);
            let site = site.ok_or_else(|| wrong(format!("no header `{header}`")))?;
            let site: SiteName = site
                .parse()
                .map_err(|error: UnitError| wrong(error.to_string()))?;
            match weights.get_mut(&site) {
                Some(weight) => *weight = ON,
                None => {
                    return Err(wrong(format!(
                        "site `{site}` answers, which is not configured"
                    )));
                }
            }
        }
        // The load balancer shows nobody outside what stands in its backend service.
        Ok(Answer {
            weights,
            epoch: None,
        })
    }
}

#[async_trait]
impl Traffic for Backend {
    fn name(&self) -> &TargetName {
        &self.settings.name
    }

    async fn read(&self) -> Result<Versioned, EffectError> {
        let get = self.services.get();
        let get = get
            .set_project(&self.settings.project)
            .set_backend_service(&self.settings.backend_service);
        let found = self.caller.look(get.send()).await?;
        let refused = |cause: String| self.refused(&cause);
        let answer = self.pool.answer(&found.backends).map_err(refused)?;
        let kept = BackendService::new()
            .set_backends(found.backends)
            .set_or_clear_fingerprint(found.fingerprint);
        let token = serde_json::to_string(&kept).map_err(|cause| refused(cause.to_string()))?;
        Ok(Versioned { answer, token })
    }

    async fn apply(
        &self,
        from: &Versioned,
        to: &Answer,
        _note: &str,
        still: Still<'_>,
    ) -> Result<Receipt, EffectError> {
        let old = self.parse(&from.token)?;
        if old.fingerprint.is_none() {
            return Err(self.refused("no fingerprint was read: a writer in between would not show"));
        }
        let backends = self
            .pool
            .replaced_by(&old.backends, to)
            .map_err(|cause| self.refused(&cause))?;
        let receipt = Receipt::replacing(Pool::shown(&old.backends), Pool::shown(&backends));
        let (operation, request) = self.patch(old.set_backends(backends), still).await?;
        Ok(receipt
            .named(OPERATION, operation)
            .named("request", request))
    }

    async fn confirm(&self, receipt: &Receipt) -> Result<Confirmation, EffectError> {
        let operation = receipt.ids.get(OPERATION);
        let operation = operation.ok_or_else(|| self.refused("the receipt has no operation"))?;
        let get = self.operations.get();
        let get = get
            .set_project(&self.settings.project)
            .set_operation(operation);
        let found = self.caller.look(get.send()).await?;
        Ok(
            match (found.status == Some(Status::Done), failure(&found)) {
                (true, None) => Confirmation::Made,
                (true, Some(why)) => Confirmation::Void(format!("operation `{operation}`: {why}")),
                (false, _) => Confirmation::Pending,
            },
        )
    }

    /// There is no dry run. But Google says who may not write before it looks at what is written,
    /// and a patch with a fingerprint that is not the present one is refused; it would change
    /// nothing in any case.
    async fn rehearse(&self, from: &Versioned) -> Result<(), EffectError> {
        if self.rehearsed.lately(self.caller.clock.as_ref()) {
            return Ok(());
        }
        let held = self.parse(&from.token)?;
        let other: Vec<u8> = held
            .fingerprint
            .iter()
            .flatten()
            .map(|byte| !byte)
            .collect();
        match self.patch(held.set_fingerprint(other), &|| Ok(())).await {
            Ok(_) | Err(EffectError::Conflict(_)) => {
                self.rehearsed.now(self.caller.clock.as_ref());
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    async fn verify_outside(&self) -> Vec<OutsideView> {
        let views = self.settings.addresses.iter().map(|address| async move {
            OutsideView {
                place: address.to_string(),
                answer: self.sample(*address).await,
            }
        });
        futures_util::future::join_all(views).await
    }
}

/// Why an operation that is done did not do it. Google calls it done in either case.
fn failure(operation: &Operation) -> Option<String> {
    let errors = operation.error.iter().flat_map(|error| &error.errors);
    let errors: Vec<String> = errors
        .map(|error| {
            let code = error.code.as_deref().unwrap_or_default();
            format!("{code} {}", error.message.as_deref().unwrap_or_default())
        })
        .collect();
    let status = operation.http_error_status_code.map(|code| {
        let text = operation.http_error_message.as_deref().unwrap_or_default();
        format!("{code} {text}")
    });
    let all: Vec<String> = status.into_iter().chain(errors).collect();
    (!all.is_empty() || operation.error.is_some()).then(|| all.join("; "))
}
