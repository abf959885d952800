// The telephone line of the page: what the microphone hears goes out in frames of 20 ms, what comes in is played.
//
// In:  an ArrayBuffer of 16-bit samples, {mark: name}, or "clear".
// Out: once in 20 ms {pcm, levels, marks}: the frame; the mean squares of its windows of 10 ms, first the microphone's and
//      then the loudspeaker's; the names of the marks that were played, or cleared.
// The rule: both sides are counted in the same samples, so that a gap between them is measured and not guessed.

class Line extends AudioWorkletProcessor {
  constructor() {
    super();
    this.pcm = new Int16Array(sampleRate / 50);
    this.filled = 0;              // samples of it
    this.window = sampleRate / 100;
    this.squares = [0, 0];        // of this window: the microphone's, the loudspeaker's
    this.levels = [[], []];
    this.queue = [];              // Int16Arrays and names of marks, in order
    this.at = 0;                  // samples played of the first
    this.marks = [];
    this.port.onmessage = ({ data }) => this.take(data);
  }

  take(data) {
    if (data !== "clear") {
      this.queue.push(data instanceof ArrayBuffer ? new Int16Array(data) : data.mark);
      return;
    }
    this.marks.push(...this.queue.filter((entry) => typeof entry === "string"));
    this.queue = [];
    this.at = 0;
  }

  next() {
    while (this.queue.length) {
      const entry = this.queue[0];
      if (typeof entry === "string") this.marks.push(entry);
      else if (this.at < entry.length) return entry[this.at++] / 32768;
      this.queue.shift();
      this.at = 0;
    }
    return 0;
  }

  process([input], [output]) {
    const heard = input[0], played = output[0];
    for (let i = 0; i < played.length; i++) {
      const mic = heard ? heard[i] : 0, sample = this.next();
      played[i] = sample;
      this.squares[0] += mic * mic;
      this.squares[1] += sample * sample;
      this.pcm[this.filled++] = Math.max(-32768, Math.min(32767, Math.round(mic * 32768)));
      if (this.filled % this.window === 0) this.squares = this.squares.map((sum, side) => {
        this.levels[side].push(sum / this.window);
        return 0;
      });
      if (this.filled === this.pcm.length) this.post();
    }
    return true;
  }

  post() {
    this.port.postMessage({ pcm: this.pcm.buffer, levels: this.levels, marks: this.marks }, [this.pcm.buffer]);
    this.pcm = new Int16Array(sampleRate / 50);
    this.filled = 0;
    this.levels = [[], []];
    this.marks = [];
  }
}

registerProcessor("line", Line);
