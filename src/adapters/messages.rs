//! Messages in the bodies of requests and answers, read and written as `wire/written.rs` says.

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{FromRequest, Request};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use crate::wire::written::{Message, NotUnderstood, Written};

/// What came in.
#[derive(Debug)]
pub struct Incoming<T>(pub Written<T>);

/// What goes out.
#[derive(Debug)]
pub struct Outgoing<T>(pub T);

/// Why the body of a request is no message.
#[derive(Debug, thiserror::Error)]
pub enum Unread {
    /// It is too long, or did not come to its end.
    #[error(transparent)]
    Body(#[from] BytesRejection),
    /// It is not understood.
    #[error(transparent)]
    Message(#[from] NotUnderstood),
}

impl Unread {
    /// How that is answered.
    pub fn status(&self) -> StatusCode {
        match self {
            Unread::Body(rejection) => rejection.status(),
            Unread::Message(_) => StatusCode::UNPROCESSABLE_ENTITY,
        }
    }
}

impl IntoResponse for Unread {
    fn into_response(self) -> Response {
        (self.status(), self.to_string()).into_response()
    }
}

impl<S: Send + Sync, T: Message> FromRequest<S> for Incoming<T> {
    type Rejection = Unread;

    async fn from_request(request: Request, state: &S) -> Result<Self, Unread> {
        let body = Bytes::from_request(request, state).await?;
        Ok(Self(Written::read(&body)?))
    }
}

impl<T: Message> IntoResponse for Outgoing<T> {
    fn into_response(self) -> Response {
        Json(Written::ours(&self.0)).into_response()
    }
}
