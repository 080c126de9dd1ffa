return {
  name = "redirect",
  fields = { { config = { type = "record", fields = { { location = { type = "string", required = true } } } } } },
}
