//! Words that are signed by who says them, and handed on as the bytes that were signed: an order of
//! the controller, and an agent's answer to one. Whoever carries them can lose or delay them, and
//! neither forge nor alter one, nor show one for another (invariants.md I18).
//!
//! Who signs and who knows signatures are ports ([`Signer`], [`Verifier`]); what a signature means is
//! here, so that every process, and the simulator, reads it by the same rules.
//!
//! A signature is over the bytes that are sent, never over what somebody read in them: so it counts
//! whatever a later program added, and whoever carries a word need not understand it. What is signed for
//! stays as it is for good; the format stands in the signed bytes.

use serde::{Deserialize, Serialize};

use super::written::{Message, NotUnderstood, Unknown, Written};
use super::{Order, OrderAnswer};
use crate::engine::chain::Digest;
use crate::engine::topology::{GroupName, SiteName};
use crate::ports::{Signer, Verifier};

/// What an order is signed for, so that no other signed thing of ours can stand for one.
const ORDER_CONTEXT: &str = "failover order v2";

/// What an answer is signed for.
const ANSWER_CONTEXT: &str = "failover answer v1";

/// A signature, with what a stranger needs to know whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signature {
    /// In hexadecimal.
    pub value: String,
    /// How it was made, as a TLS signature scheme; `None`: with the key for orders.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheme: Option<u16>,
    /// The signer's certificates, each as DER in base64, its own first; none for the key for orders,
    /// which every agent has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub certificates: Vec<String>,
}

/// Whose signature something bears.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Author {
    /// The controller's key for orders.
    Controller,
    /// The certificate of an agent.
    Agent {
        /// Of which group.
        group: GroupName,
        /// At which site.
        site: SiteName,
    },
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
    /// The certificate beside the signature is none that is believed.
    #[error("the signer's certificate is not believed: {0}")]
    Certificate(String),
    /// It is signed, by somebody whose word it cannot be.
    #[error("it is signed by {found}, not by {expected}")]
    Stranger {
        /// Who signed.
        found: String,
        /// Who should have.
        expected: String,
    },
    /// It is a true answer, to another order.
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

/// Something signed: the very bytes, and the signature over them. There is no way to what they say but
/// past the signature.
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

/// An order with the controller's signature. Whoever has one knows that the controller gave it, and
/// can show it to others.
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

    /// What is ordered.
    pub fn order(&self) -> &Order {
        &self.order
    }

    /// As it is sent.
    pub fn sealed(&self) -> &Sealed {
        &self.sealed
    }
}

/// An answer with the order that it answers.
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

/// What the agent that an order was for answers to exactly this order, whoever carried its words.
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
