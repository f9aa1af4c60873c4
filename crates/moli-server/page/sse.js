// Server-sent events from pieces of text, cut anywhere. Only the field `data` matters to us.

// An event is a few tokens with their probabilities at most; more means that this is no such stream.
const MAX_EVENT = 4_000_000; // UTF-16 units

/** Collects pieces and gives the data of each event that is complete. */
export class SseParser {
  #line = []; // pieces of the line that has not ended
  #data = []; // lines of the event that has not ended
  #held = 0;
  #afterReturn = false;

  /** The data of the events that end in this piece. Throws RangeError for an event without end. */
  push(piece) {
    const events = [];
    // The second half of a line end that was cut in two.
    let from = this.#afterReturn && piece[0] === '\n' ? 1 : 0;
    if (piece !== '') this.#afterReturn = piece.endsWith('\r');
    const end = /\r\n|\n|\r/g;
    end.lastIndex = from;
    for (let match = end.exec(piece); match; match = end.exec(piece)) {
      this.#line.push(piece.slice(from, match.index));
      this.#endLine(events);
      from = end.lastIndex;
    }
    if (from < piece.length) {
      this.#line.push(piece.slice(from));
      this.#held += piece.length - from;
      if (this.#held > MAX_EVENT) throw new RangeError(`an event of more than ${MAX_EVENT} characters`);
    }
    return events;
  }

  #endLine(events) {
    const line = this.#line.join('');
    this.#line.length = 0;
    if (line === '') {
      if (this.#data.length > 0) events.push(this.#data.join('\n'));
      this.#data.length = 0;
      this.#held = 0;
    } else if (line.startsWith('data:')) {
      this.#data.push(line.slice(line[5] === ' ' ? 6 : 5));
      this.#held += line.length;
      if (this.#held > MAX_EVENT) throw new RangeError(`an event of more than ${MAX_EVENT} characters`);
    }
  }
}
