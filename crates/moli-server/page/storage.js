// The browser's storage, or memory in its place where a browser is set up to keep nothing.

class Stored {
  #storage = null;
  #memory = new Map();

  constructor(name) {
    try {
      this.#storage = window[name];
    } catch {
      // Refused: what is written lasts as long as the page.
    }
  }

  /** The text under `key`, or null. */
  get(key) {
    return this.#storage ? this.#storage.getItem(key) : (this.#memory.get(key) ?? null);
  }

  /** Keeps a text; false if there is no room, or if it will not outlive the page. */
  set(key, text) {
    try {
      this.#storage.setItem(key, text);
      return true;
    } catch {
      if (!this.#storage) this.#memory.set(key, text);
      return false;
    }
  }

  remove(key) {
    if (this.#storage) this.#storage.removeItem(key);
    else this.#memory.delete(key);
  }

  keys() {
    return this.#storage ? Object.keys(this.#storage) : [...this.#memory.keys()];
  }
}

/** What outlives the browser. */
export const local = new Stored('localStorage');

/** What lasts as long as the tab. */
export const session = new Stored('sessionStorage');
