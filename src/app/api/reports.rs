//! What agents and observers report.

use axum::extract::{ConnectInfo, State};
use axum::http::StatusCode;

use super::{
    Answer, Api, Identity, Incoming, Input, Noise, Outgoing, PeerIdentity, Problem, Unread,
    unprocessable,
};
use crate::wire::written::{NotUnderstood, Written};
use crate::wire::{ObserverAnswer, ObserverReport, Report, ReportAnswer, check_count};

pub(super) async fn report(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<PeerIdentity>,
    report: Result<Incoming<Report>, Unread>,
) -> Answer<ReportAnswer> {
    let written = understood(&api, &peer, report)?;
    let report = &written.message;
    let expected = Identity::Agent {
        group: report.group.clone(),
        site: report.site.clone(),
    };
    if peer.identity != expected || report.group != api.group {
        let text = format!(
            "`{}` may not report for site `{}` of `{}`",
            peer.identity, report.site, report.group
        );
        let from = format!("{text}, from {}", peer.address);
        api.journal
            .tell(Noise::AgentRejected, &peer.identity, &from);
        return Err(Problem(StatusCode::FORBIDDEN, text));
    }
    check_count(&report.observations).map_err(unprocessable)?;
    Ok(Outgoing(
        api.control
            .ask(|answer| Input::Reported(Box::new(written), answer))
            .await?,
    ))
}

/// Takes what an observer saw.
pub(super) async fn observed(
    State(api): State<Api>,
    ConnectInfo(peer): ConnectInfo<PeerIdentity>,
    report: Result<Incoming<ObserverReport>, Unread>,
) -> Answer<ObserverAnswer> {
    let written = understood(&api, &peer, report)?;
    let report = &written.message;
    let expected = Identity::Observer {
        group: report.group.clone(),
        name: report.name.clone(),
    };
    let answer = if peer.identity == expected && report.group == api.group {
        check_count(&report.observations).map_err(unprocessable)?;
        let asked = |answer| Input::ObserverReported(Box::new(written), answer);
        api.control.ask(asked).await?
    } else {
        Err(format!(
            "`{}` may not report as observer `{}` of `{}`",
            peer.identity, report.name, report.group
        ))
    };
    answer.map(Outgoing).map_err(|error| {
        let text = format!("{error}, from {}", peer.address);
        api.journal
            .tell(Noise::ObserverRejected, &peer.identity, &text);
        Problem(StatusCode::FORBIDDEN, error)
    })
}

/// A report that came in. One of a later program that is not understood is noted: who sent it is not
/// heard until somebody upgrades this controller.
fn understood<T>(
    api: &Api,
    peer: &PeerIdentity,
    report: Result<Incoming<T>, Unread>,
) -> Result<Written<T>, Problem> {
    match report {
        Ok(Incoming(written)) => Ok(written),
        Err(unread) => {
            if let Unread::Message(later @ NotUnderstood::Later { .. }) = &unread {
                let told = format!("`{}`: {later}", peer.identity);
                api.journal
                    .tell(Noise::ReportNotUnderstood, &peer.identity, &told);
            }
            Err(unread.into())
        }
    }
}
