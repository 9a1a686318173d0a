//! The same inputs and actions under another type of head.

use replikit_core::{Action, Input, Message};

/// An input that is no message.
pub(crate) fn input<H, G>(input: Input<H>) -> Option<Input<G>> {
    Some(match input {
        Input::Message { .. } => return None,
        Input::RecoverSnapshot { at, chunk, last } => Input::RecoverSnapshot { at, chunk, last },
        Input::Recover { batch } => Input::Recover { batch },
        Input::Recovered => Input::Recovered,
        Input::Timer => Input::Timer,
        Input::Peer { node, link } => Input::Peer { node, link },
        Input::Command { token, group, level, session, body } => Input::Command { token, group, level, session, body },
        Input::OpenSession { token, group } => Input::OpenSession { token, group },
        Input::Query { token, group, level, body, bytes_max } => Input::Query { token, group, level, body, bytes_max },
        Input::Write { token, group, write } => Input::Write { token, group, write },
        Input::Read { token, group, read } => Input::Read { token, group, read },
        Input::Durable { up_to } => Input::Durable { up_to },
        Input::LogRead { ticket, stream, answer } => Input::LogRead { ticket, stream, answer },
        Input::SnapshotRead { ticket, answer } => Input::SnapshotRead { ticket, answer },
        Input::Storage { event } => Input::Storage { event },
        Input::Admin { token, group, command } => Input::Admin { token, group, command },
    })
}

/// An action with its head wrapped.
pub(crate) fn action<H, G>(action: Action<H>, wrap: impl FnOnce(H) -> G) -> Action<G> {
    match action {
        Action::Send { to, message: Message { head, batches } } => {
            Action::Send { to, message: Message { head: wrap(head), batches } }
        }
        Action::Persist { id, op } => Action::Persist { id, op },
        Action::ReadLog { ticket, stream, from, bytes_max } => Action::ReadLog { ticket, stream, from, bytes_max },
        Action::ReadSnapshot { ticket, at, group, offset, bytes_max } => {
            Action::ReadSnapshot { ticket, at, group, offset, bytes_max }
        }
        Action::Done { token, outcome } => Action::Done { token, outcome },
        Action::Event { group, event } => Action::Event { group, event },
    }
}
