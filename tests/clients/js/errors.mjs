// What an SDK raises, as Python can look at it; null where it raises nothing.
export async function error(of) {
  try {
    await of();
    return null;
  } catch (e) {
    return { name: e.constructor.name, status: e.status, type: e.type, code: e.code, request: Boolean(e.requestID) };
  }
}
