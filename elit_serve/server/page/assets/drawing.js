// Pictures from request to end, through the streaming route.

import { ApiError, events } from "./api.js";

export const NUM_PREVIEWS = 3;

/**
 * Makes the pictures of a request; `onPreview(index, src, number)` is called with what each promises to become, and
 * `onTaken` with the id of the request once the server has taken it.
 * Resolves to a list of {src, seed, levels, strides, facts, size, request}: facts as `/v1/generate` tells them.
 */
export async function drawn(request, { signal, onPreview, onTaken }) {
  const { label, prompt = label, ...wishes } = request; // a class is a prompt too on this route
  const body = { ...wishes, prompt, stream: true, partial_images: NUM_PREVIEWS };
  const results = [];
  for await (const { type, data } of events("v1/images/generations", { body, signal, onTaken })) {
    const src = `data:image/${data.output_format};base64,${data.b64_json}`;
    if (type === "image_generation.partial_image") {
      onPreview(data.seed - request.seed, src, data.partial_image_index + 1);
    }
    if (type === "image_generation.completed") {
      const { seed, levels, strides, size, elit: facts } = data;
      results.push({ src, seed, levels, strides, facts, size, request });
    }
  }
  if (results.length !== (request.n ?? 1)) throw new ApiError({ status: 0, code: "unreachable", message: "" });
  return results;
}
