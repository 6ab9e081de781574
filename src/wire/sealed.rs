//! Messages that are signed by their author and passed on as the signed bytes: an order of the
//! controller, and an agent's answer to one. A relay can lose or delay them, but neither forge nor
//! alter one, nor replace one with another (invariants.md I18).
//!
//! Who signs and who knows signatures is handed in ([`Signer`], [`Verifier`]); what a signature means is
//! here, so that every process, and the simulator, reads it by the same rules.
//!
//! A signature is over the bytes that are sent, never over what somebody read in them: so it counts
//! whatever a later program added, and whoever carries a word need not understand it. What is signed for
//! stays as it is for good; the format stands in the signed bytes.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::written::{Message, NotUnderstood, Unknown, Written};
use super::{Order, OrderAnswer};
use crate::engine::chain::Digest;
use crate::engine::topology::{GroupName, SiteName};

/// The signing context of an order, so that nothing else that we sign can pass for one.
const ORDER_CONTEXT: &str = "failover order v2";

/// The signing context of an answer.
const ANSWER_CONTEXT: &str = "failover answer v1";

/// A signature, with what a stranger needs to identify the signer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// In hexadecimal.
    pub value: String,
    /// The TLS signature scheme; `None` for the order key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<u16>,
    /// The signer's certificates, each as DER in base64, its own first; none for the order key,
    /// which every agent knows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<String>,
}

/// Who signed something.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Author {
    /// The controller's order key.
    Controller,
    /// The certificate of an agent.
    Agent {
        /// The agent's group.
        group: GroupName,
        /// The agent's site.
        site: SiteName,
    },
}

/// Signs as this process.
pub trait Signer: Send + Sync + fmt::Debug {
    /// Signs some bytes.
    fn sign(&self, message: &[u8]) -> Result<Signature, SealError>;
}

/// Knows signatures.
pub trait Verifier: Send + Sync + fmt::Debug {
    /// Who signed exactly these bytes; an error where that is nobody whose signature counts here.
    fn signed_by(&self, message: &[u8], signature: &Signature) -> Result<Author, SealError>;
}

/// Why something could not be signed, or a signature does not count.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// Another key, another purpose, or other bytes.
    #[error(
        "the signature does not match: the body was changed, or another key or purpose signed it"
    )]
    Mismatch,
    /// The signature is not hexadecimal text.
    #[error("the signature is not hexadecimal text: the message was damaged")]
    NotHex,
    /// The certificate beside the signature is not trusted.
    #[error("the signer's certificate is not trusted: {0}")]
    Certificate(String),
    /// Signed, but by the wrong party.
    #[error("it is signed by {found}, not by {expected}")]
    Stranger {
        /// Who signed.
        found: String,
        /// Who should have.
        expected: String,
    },
    /// A genuine answer, but to another order.
    #[error("it is the answer to another order")]
    OtherOrder,
    /// What is to be signed cannot be written.
    #[error("cannot write what is to be signed: {0}")]
    NotJson(String),
    /// It is signed, and cannot be read.
    #[error(transparent)]
    NotUnderstood(#[from] NotUnderstood),
    /// The key does not sign.
    #[error("cannot sign: {0}")]
    Refused(String),
}

impl std::fmt::Display for Author {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Author::Controller => f.write_str("the controller"),
            Author::Agent { group, site } => write!(f, "the agent of `{site}` of `{group}`"),
        }
    }
}

/// Something signed: the exact bytes, and the signature over them. Its content can only be read by
/// verifying the signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    /// JSON, as it was signed.
    body: String,
    signature: Signature,
}

impl Sealed {
    fn seal<T: Message>(said: &T, context: &str, by: &dyn Signer) -> Result<Self, SealError> {
        let body = serde_json::to_string(&Written::ours(said));
        let body = body.map_err(|cause| SealError::NotJson(cause.to_string()))?;
        let signature = by.sign(&message(context, &body))?;
        Ok(Self { body, signature })
    }

    /// Whose word it is.
    fn author(&self, context: &str, by: &dyn Verifier) -> Result<Author, SealError> {
        by.signed_by(&message(context, &self.body), &self.signature)
    }

    fn read<T: Message>(&self) -> Result<T, NotUnderstood> {
        Written::read(self.body.as_bytes()).map(|written| written.message)
    }

    /// Whether it is an order of the controller, whatever it says: for who only carries it.
    pub fn is_order(&self, by: &dyn Verifier) -> Result<(), SealError> {
        expect(&self.author(ORDER_CONTEXT, by)?, &Author::Controller)
    }

    /// The digest of the bytes that were signed.
    fn digest(&self) -> Digest {
        Digest::of(self.body.as_bytes())
    }
}

/// What is signed: the context, a zero byte, the body.
fn message(context: &str, body: &str) -> Vec<u8> {
    [context.as_bytes(), &[0], body.as_bytes()].concat()
}

/// An order with the controller's signature. Anyone who has one can verify that the controller gave
/// it, and show it to others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedOrder {
    order: Order,
    sealed: Sealed,
}

impl SignedOrder {
    /// Signs an order, as the controller.
    pub fn seal(order: Order, by: &dyn Signer) -> Result<Self, SealError> {
        let sealed = Sealed::seal(&order, ORDER_CONTEXT, by)?;
        Ok(Self { order, sealed })
    }

    /// Reads an order, if the controller signed it.
    pub fn open(sealed: Sealed, by: &dyn Verifier) -> Result<Self, SealError> {
        sealed.is_order(by)?;
        let order = sealed.read()?;
        Ok(Self { order, sealed })
    }

    /// The order itself.
    pub fn order(&self) -> &Order {
        &self.order
    }

    /// The signed order in the form in which it is sent.
    pub fn sealed(&self) -> &Sealed {
        &self.sealed
    }
}

/// An answer, bound to its order.
#[derive(Debug, Serialize, Deserialize)]
struct Answered {
    /// The digest of the order's bytes.
    order: Digest,
    answer: OrderAnswer,
}

impl Message for Answered {
    const NAME: &'static str = "answer to the order";
    const READER: &'static str = "controller";
    const UNKNOWN: Unknown = Unknown::Refused;
}

/// Signs an answer to an order, as the agent that it was for.
pub fn seal_answer(
    order: &SignedOrder,
    answer: OrderAnswer,
    by: &dyn Signer,
) -> Result<Sealed, SealError> {
    let order = order.sealed.digest();
    Sealed::seal(&Answered { order, answer }, ANSWER_CONTEXT, by)
}

/// The receiving agent's answer to exactly this order, whoever relayed it.
pub fn open_answer(
    order: &SignedOrder,
    answer: &Sealed,
    by: &dyn Verifier,
) -> Result<OrderAnswer, SealError> {
    let author = answer.author(ANSWER_CONTEXT, by)?;
    let (group, site) = (order.order.group.clone(), order.order.site.clone());
    expect(&author, &Author::Agent { group, site })?;
    let answered: Answered = answer.read()?;
    if answered.order != order.sealed.digest() {
        return Err(SealError::OtherOrder);
    }
    Ok(answered.answer)
}

fn expect(found: &Author, expected: &Author) -> Result<(), SealError> {
    if found == expected {
        return Ok(());
    }
    Err(SealError::Stranger {
        found: found.to_string(),
        expected: expected.to_string(),
    })
}
