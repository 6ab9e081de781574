//! Where a process takes the messages of a group.

use axum::Router;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};

use crate::engine::text::clipped;
use crate::engine::topology::GroupName;
use crate::wire::{GROUPS_PATH, ONLY_PLACE};

/// The routes of a group, at its own place and at the one from before groups had any: a process that
/// was not upgraded yet calls there.
pub fn placed(group: &GroupName, routes: Router) -> Router {
    let ours = from_fn_with_state(group.clone(), ours);
    Router::new()
        .nest(
            &format!("{ONLY_PLACE}{GROUPS_PATH}/{{group}}"),
            routes.clone().layer(ours),
        )
        .nest(ONLY_PLACE, routes)
}

/// A refusal has a text: whoever calls takes a bare 404 for the answer of an earlier program.
async fn ours(
    State(group): State<GroupName>,
    Path(named): Path<String>,
    request: Request,
    next: Next,
) -> Response {
    if named == group.as_str() {
        return next.run(request).await;
    }
    let text = format!(
        "there is no group `{}` here, only `{group}`",
        clipped(named)
    );
    (StatusCode::NOT_FOUND, text).into_response()
}
