// Drawing that follows a stream without falling behind it.

const SHARE = 9; // pauses are this many times as long as the drawing before them

/**
 * A function that has `draw` called once in a next animation frame, however often it is called itself. After a slow drawing
 * the next one waits, so that a long answer takes a tenth of the time at most: its cost does not grow with its square.
 */
export function paced(draw) {
  let due = false;
  let notBefore = 0;
  const frame = () => {
    due = false;
    const began = performance.now();
    draw();
    const ended = performance.now();
    notBefore = ended + SHARE * (ended - began);
  };
  return () => {
    if (due) return;
    due = true;
    const wait = notBefore - performance.now();
    if (wait > 16) setTimeout(() => requestAnimationFrame(frame), wait);
    else requestAnimationFrame(frame);
  };
}
