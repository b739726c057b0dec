// One picture from request to end, through the streaming route.

import { ApiError, events } from "./api.js";

export const NUM_PREVIEWS = 3;

/**
 * Makes a picture; `onPreview(src, number)` is called with what it promises to become.
 * Resolves to {src, file, facts, levels, seed}: facts as `/v1/generate` tells them.
 */
export async function drawn(wishes, { signal, onPreview }) {
  const body = { ...wishes, stream: true, partial_images: NUM_PREVIEWS };
  for await (const { type, data } of events("v1/images/generations", { body, signal })) {
    const src = `data:image/${data.output_format};base64,${data.b64_json}`;
    if (type === "image_generation.partial_image") onPreview(src, data.partial_image_index + 1);
    if (type === "image_generation.completed") {
      const { b64_json: file, seed, levels, elit: facts } = data;
      return { src, file, seed, levels, facts };
    }
  }
  throw new ApiError({ status: 0, code: "unreachable", message: "" });
}
