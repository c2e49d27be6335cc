//! Pieces on their way from a client to whoever reads them, with one budget for all channels of a session: a client makes the
//! agent hold no more than that, however many channels it opens and however small its pieces are.

use std::ops::Deref;
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{PIECE, QUEUE};

/// Most bytes a session holds for all its channels. While they are in use, nothing more is read from the connection.
const BUDGET: usize = 1 << 20;
/// What a piece costs beside its bytes.
const OVERHEAD: usize = 128;

/// What a session may hold; shared by its channels.
#[derive(Clone)]
pub struct Budget(Arc<Semaphore>);

impl Default for Budget {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(BUDGET)))
    }
}

/// Some bytes that arrived on a channel. Its part of the budget is free again when it is dropped.
#[derive(Debug)]
pub struct Piece {
    data: Box<[u8]>,
    _room: OwnedSemaphorePermit,
}

impl Deref for Piece {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.data
    }
}

/// Where a session puts what arrives on one channel; the channel ends when it is dropped.
pub struct Feeder {
    pieces: mpsc::Sender<Piece>,
    budget: Budget,
}

/// What a client sends on a channel, in pieces of at most [`PIECE`] bytes; ends when the client has closed it.
#[derive(Debug)]
pub struct Inlet(mpsc::Receiver<Piece>);

/// A channel of a session with that budget.
pub fn channel(budget: &Budget) -> (Feeder, Inlet) {
    let (pieces, arriving) = mpsc::channel(QUEUE);
    (Feeder { pieces, budget: budget.clone() }, Inlet(arriving))
}

impl Feeder {
    /// Hands over a copy, so that nothing else of what was read with it is kept. Waits while the other side does not read;
    /// what nobody wants is dropped.
    pub async fn send(&self, data: &[u8]) {
        for piece in data.chunks(PIECE) {
            let cost = u32::try_from(piece.len() + OVERHEAD).unwrap_or(u32::MAX);
            let room = tokio::select! {
                room = self.budget.0.clone().acquire_many_owned(cost) => room,
                () = self.pieces.closed() => return,
            };
            let Ok(room) = room else { return };
            if self.pieces.send(Piece { data: piece.into(), _room: room }).await.is_err() {
                return;
            }
        }
    }

    /// Whether nobody reads any more.
    pub fn is_closed(&self) -> bool {
        self.pieces.is_closed()
    }
}

impl Inlet {
    /// The next piece.
    pub async fn recv(&mut self) -> Option<Piece> {
        self.0.recv().await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_channels_of_a_session_share_its_budget() {
        let budget = Budget::default();
        let mut channels: Vec<_> = (0..64).map(|_| channel(&budget)).collect();
        let mut held = 0;
        for (feeder, _) in &channels {
            let whole = vec![0; PIECE];
            let sent = tokio::time::timeout(Duration::from_secs(1), feeder.send(&whole)).await;
            held += usize::from(sent.is_ok());
        }
        assert_eq!(held, BUDGET / (PIECE + OVERHEAD), "pieces held for 64 channels");
        // one is taken: there is room for one, as soon as it is done with
        let piece = channels[0].1.recv().await.unwrap();
        let (feeder, _inlet) = channel(&budget);
        let sending = tokio::spawn(async move { feeder.send(&[1; PIECE]).await });
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!sending.is_finished());
        drop(piece);
        sending.await.unwrap();
    }

    #[tokio::test]
    async fn small_pieces_cost_more_than_their_bytes() {
        let budget = Budget::default();
        let (feeder, mut inlet) = channel(&budget);
        feeder.send(b"x").await;
        assert_eq!(budget.0.available_permits(), BUDGET - OVERHEAD - 1);
        assert_eq!(&*inlet.recv().await.unwrap(), b"x");
        assert_eq!(budget.0.available_permits(), BUDGET);
        drop(inlet);
        assert!(feeder.is_closed());
        feeder.send(b"y").await;
    }
}
