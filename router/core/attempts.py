"""What workers say of attempts: reservations, tokens, hand-offs, ends."""

from __future__ import annotations

from itertools import zip_longest

from protos.tandem.v1 import common_pb2
from protos.tandem.v1.inference_pb2 import HandoffReport, SpeculationReport
from router.core.book import Book
from router.core.events import (
    Ended,
    PrefillDone,
    Reserved,
    StateArrived,
    Stayed,
    TokensArrived,
)
from router.core.instructions import Deliver, SendPrefill
from router.core.migration import Migrations
from router.core.reasons import WELL, Reason
from router.core.request import Attempt, Cause, Migration, Request, Side, State
from router.core.tokens import Chunk, TokenGapError


class Attempts:
    """Moves requests along as workers report progress."""

    def __init__(self, book: Book, migrations: Migrations) -> None:
        self._book = book
        self._migrations = migrations

    def on_reserved(self, event: Reserved) -> None:
        """Decode has memory: prefill may begin."""
        book = self._book
        attempt = self._progressing(event.worker_id, event.handle)
        if attempt is not None and attempt.incoming:
            self._migrations.reserved(attempt, event)
            return
        if attempt is None or attempt.request.state is not State.RESERVED:
            return
        request = attempt.request
        request.reserved_s = book.now_s
        attempt.due_s = book.now_s + attempt.patience_s
        side = book.holdings.send_prefill(attempt)
        book.renewals.add(attempt, event.lease_s, book.now_s)
        request.move(book.now_s, State.PREFILLING, Cause.TICKET)
        generated = tuple(request.tokens.token_ids)
        book.out.append(
            SendPrefill(side.worker_id, event.handle, request.request_id, event.ticket, generated)
        )

    def on_prefill_done(self, event: PrefillDone) -> None:
        """A prompt was read; where the state was sent, prefill has said all it has to say."""
        book = self._book
        found = book.holdings.find(event.worker_id, event.handle)
        if found is None:
            return  # late, and the worker holds nothing for it any more
        attempt, side = found
        book.holdings.prompt_read(attempt)
        sent = side is attempt.prefill and event.handoff is not None
        if sent:
            self._note_link_speed(event.handoff, [one.worker_id for one in attempt.sides])
            book.holdings.close(attempt, side)
        if not attempt.counts:
            return
        request = attempt.request
        request.prefill_ms = event.prefill_ms
        request.cached_tokens = event.cached_tokens
        if not sent:
            return  # its end follows, or it decodes the answer itself
        request.handoff = event.handoff
        attempt.due_s = book.now_s + attempt.patience_s
        book.praise(event.worker_id)
        if request.state is State.PREFILLING:
            request.move(book.now_s, State.HANDING_OFF, Cause.PREFILL_DONE)
        detail = f"worker {event.worker_id} read the prompt but sent no first token"
        self._after_prefill(attempt, event.worker_id, common_pb2.REASON_ENGINE_ERROR, detail)

    def on_state_arrived(self, event: StateArrived) -> None:
        """Decode has accepted the state."""
        book = self._book
        attempt = self._progressing(event.worker_id, event.handle)
        if attempt is None:
            return
        if attempt.incoming:
            self._migrations.arrived(attempt, event)
            return
        attempt.state_arrived = True
        book.holdings.state_moved(attempt)
        waited = attempt.moved or attempt.request.state in (State.PREFILLING, State.HANDING_OFF)
        if waited and attempt.request.state is not State.DECODING:
            attempt.request.move(book.now_s, State.DECODING, Cause.STATE_ARRIVED)

    def on_tokens(self, event: TokensArrived) -> None:
        """New tokens of many requests."""
        book = self._book
        attempts, worker_id = book.holdings.attempts, event.worker_id
        token_ids, logprobs = event.token_ids, event.logprobs
        start, of_one = 0, len(event.counts) == 1 and event.counts[0] == len(token_ids)
        rows = zip(event.handles, event.first_indexes, event.counts, strict=True)
        for handle, first, count in rows:
            end = start + count
            attempt = attempts.get(handle)
            if attempt is None or attempt.side_of(worker_id) is None:
                book.out.extend(book.holdings.cancel_stray(worker_id, handle))
            elif attempt.counts or attempt.incoming:
                if of_one:
                    chunk = Chunk(first, token_ids, logprobs)
                else:
                    chunk = Chunk(first, token_ids[start:end], logprobs[start:end])
                if attempt.counts:
                    self._take(attempt, worker_id, chunk)
                else:
                    self._migrations.wait(attempt, chunk)
            start = end

    def on_ended(self, event: Ended) -> None:
        """A worker holds nothing for an attempt any more."""
        book = self._book
        found = book.holdings.find(event.worker_id, event.handle)
        if found is None:
            return
        attempt, side = found
        view = book.fleet.get(event.worker_id)
        assert view is not None
        # With nothing else of ours on a worker, no room comes free there by waiting.
        room_will_come = len(view.holds) > 1
        book.holdings.close(attempt, side)
        if not attempt.counts and not attempt.incoming:
            return
        full = event.reason == common_pb2.REASON_OUT_OF_CAPACITY and room_will_come
        refused = full or event.reason == common_pb2.REASON_DRAINING
        if refused:
            view.refused = True
            book.fleet.refresh(view)
        if attempt.incoming:
            self._migrations.target_ended(attempt, event)
        else:
            self._end(attempt, side, event, refused)

    def on_stayed(self, event: Stayed) -> None:
        """A worker goes on with what it was told to let go."""
        found = self._book.holdings.find(event.worker_id, event.handle)
        if found is not None:
            self._migrations.stayed(found[0], event)

    def _end(self, attempt: Attempt, side: Side, event: Ended, refused: bool) -> None:
        """One side of an attempt that counts is over, well or not."""
        book, request, reason = self._book, attempt.request, event.reason
        request.speculation = _joined(request.speculation, event.speculation)
        if reason == common_pb2.REASON_MIGRATED:
            self._moved(attempt, event)
            return
        if reason not in WELL:
            book.fail(attempt, event.worker_id, reason, event.detail, counts=not refused)
            return
        book.praise(event.worker_id)
        request.ending = (reason, event.detail)
        # Of prefill this means that its first token was the last one; of decode, that the report
        # of prefill may still be under way.
        detail = f"worker {event.worker_id} ended the request without a token"
        prefill = attempt.prefill
        if side is not attempt.decode or prefill is None or prefill.closed or not prefill.sent:
            self._after_prefill(attempt, event.worker_id, common_pb2.REASON_ENGINE_ERROR, detail)
        else:
            book.silences.watch(attempt, book.now_s + book.policy.report_wait_s)

    def end_silent(self) -> None:
        """Give up attempts whose workers are connected and say nothing."""
        book = self._book
        for attempt in book.silences.over(book.now_s):
            request, prefill = attempt.request, attempt.prefill
            if request.ending is not None and request.tokens.delivered:
                book.end(request, *request.ending)
                continue
            silent, reason = attempt.decode.worker_id, common_pb2.REASON_ENGINE_ERROR
            if prefill is not None and not prefill.closed and request.state is not State.RESERVED:
                silent = prefill.worker_id
            elif attempt.moved or request.state is not State.RESERVED:
                # Written, and not accepted: it may be the fault of either.
                reason = common_pb2.REASON_TRANSFER_FAILED
            detail = (
                f"worker {silent} said nothing for {attempt.patience_s:.1f} s while the request "
                f"was {request.state}"
            )
            book.fail(attempt, silent, reason, detail)

    def lost(self, attempt: Attempt, worker_id: str, detail: str) -> None:
        """A worker that had a part in an attempt is gone."""
        if attempt.incoming:
            self._migrations.target_lost(attempt, detail)
            return
        if not attempt.counts:
            return
        request, reason = attempt.request, common_pb2.REASON_WORKER_LOST
        if attempt.decode.closed and request.migration is not None and request.ending is None:
            migration = self._migrations.take_over(attempt, reason)
            if migration is not None:
                self._go_on(migration)
                return
        needed = attempt.decode.closed or request.state in (State.RESERVED, State.PREFILLING)
        if needed and request.ending is None:
            self._book.fail(attempt, worker_id, reason, detail)
        else:
            self._after_prefill(attempt, worker_id, reason, detail)

    def _after_prefill(self, attempt: Attempt, worker_id: str, reason: Reason, detail: str) -> None:
        """Prefill says nothing more: go on if its token is there, else it failed for this reason.

        An attempt that went on from tokens of an earlier one needs none from prefill.
        """
        request = attempt.request
        if request.tokens.delivered == 0:
            self._book.fail(attempt, worker_id, reason, detail)
        elif request.ending is not None:
            self._book.end(request, *request.ending)

    def _take(self, attempt: Attempt, worker_id: str, chunk: Chunk) -> None:
        book, request = self._book, attempt.request
        of_decode = worker_id == attempt.decode.worker_id and request.migration is None
        if request.state is not State.DECODING and of_decode:
            self._decodes(attempt, request)
        try:
            for part in request.tokens.take(chunk):
                first = part.first_index
                if first == 0:
                    request.first_token_s = book.now_s
                    attempt.due_s = book.now_s + attempt.patience_s
                    book.holdings.prompt_read(attempt)
                    book.praise(worker_id)
                request.last_token_s = book.now_s
                deliver = Deliver(request.request_id, first, part.token_ids, part.logprobs)
                book.out.append(deliver)
        except TokenGapError as error:
            detail = f"worker {worker_id} sent {error}"
            book.fail(attempt, worker_id, common_pb2.REASON_ENGINE_ERROR, detail)

    def _decodes(self, attempt: Attempt, request: Request) -> None:
        book = self._book
        request.move(book.now_s, State.DECODING, Cause.DECODE_TOKENS)
        attempt.state_arrived = True
        book.holdings.state_moved(attempt)
        book.holdings.prompt_read(attempt)
        book.praise(attempt.decode.worker_id)

    def _moved(self, source: Attempt, event: Ended) -> None:
        """A worker has let a request go: it goes on where its state is."""
        migration = self._migrations.take_over(source, event.reason)
        if migration is None:
            detail = f"its state left worker {event.worker_id}, and nobody waited for it any more"
            self._book.fail(source, event.worker_id, event.reason, detail, counts=False)
            return
        ends = [event.worker_id, migration.target.decode.worker_id]
        self._note_link_speed(event.handoff, ends)
        self._go_on(migration)

    def _go_on(self, migration: Migration) -> None:
        """What the new attempt has said before counts from here on."""
        target, ended = migration.target, migration.ended
        for chunk in migration.early:
            if target.counts:
                self._take(target, target.decode.worker_id, chunk)
        if ended is not None and target.counts:
            self._end(target, target.decode, ended, refused=False)

    def _note_link_speed(self, handoff: HandoffReport | None, workers: list[str]) -> None:
        if handoff is None or handoff.transfer_ms <= 0.0:
            return
        sent_bytes = handoff.kv_bytes + handoff.mamba_bytes + handoff.mtp_bytes
        for worker_id in workers:
            view = self._book.fleet.get(worker_id)
            if view is not None:
                view.note_transfer(sent_bytes, handoff.transfer_ms / 1e3)

    def _progressing(self, worker_id: str, handle: int) -> Attempt | None:
        """The attempt that a worker reports progress on; one that nobody wants is cancelled."""
        found = self._book.holdings.find(worker_id, handle)
        if found is None:
            self._book.out.extend(self._book.holdings.cancel_stray(worker_id, handle))
            return None
        return found[0] if found[0].counts or found[0].incoming else None


def _joined(
    before: SpeculationReport | None, after: SpeculationReport | None
) -> SpeculationReport | None:
    """What speculation did for a request on all workers that decoded it."""
    if before is None or after is None:
        return after or before
    return SpeculationReport(
        steps=before.steps + after.steps,
        drafted=map(sum, zip_longest(before.drafted, after.drafted, fillvalue=0)),
        accepted=map(sum, zip_longest(before.accepted, after.accepted, fillvalue=0)),
    )
