/* Values for people: units that a reader need not count digits in. */
#include <math.h>
#include <string.h>

#include "ctl/ctl.h"

double ctl_number(const json_t *object, const char *key)
{
	return json_number_value(json_object_get(object, key));
}

const char *ctl_string(const json_t *object, const char *key)
{
	const char *text = json_string_value(json_object_get(object, key));

	return text ? text : "";
}

bool ctl_flag(const json_t *object, const char *key)
{
	return json_is_true(json_object_get(object, key));
}

/* Three digits that matter: 1.23, 12.3, 123. The caller has scaled x below 1024. */
static const char *three_digits(double x, const char *unit, char *out)
{
	int decimals = x >= 99.95 ? 0 : x >= 9.995 ? 1 : 2;

	snprintf(out, CTL_CELL, "%.*f%s", decimals, x, unit);
	return out;
}

/* @x in the largest unit that leaves at least one. Unscaled it is a count: no decimals. */
static const char *scaled(double x, double step, const char *const *units, unsigned n_units, char *out)
{
	unsigned i = 0;

	if (!(x > 0))	/* NaN too */
		x = 0;
	while (i + 1 < n_units && x >= step * 0.9995) {
		x /= step;
		i++;
	}
	if (i == 0) {
		snprintf(out, CTL_CELL, "%.0f%s", x, units[i]);
		return out;
	}
	return three_digits(x, units[i], out);
}

/* Sizes that somebody chose are whole, and shown so: 256 MiB. */
const char *ctl_bytes(double bytes, char *out)
{
	static const char *const units[] = { " B", " KiB", " MiB", " GiB", " TiB", " PiB" };
	double x = bytes;

	for (unsigned i = 0; i < 6 && x >= 1; i++, x /= 1024) {
		if (x < 1024 && x == floor(x)) {
			snprintf(out, CTL_CELL, "%.0f%s", x, units[i]);
			return out;
		}
	}
	return scaled(bytes, 1024, units, 6, out);
}

static const char *const thousands[] = { "", " k", " M", " G", " T", " P" };

const char *ctl_count(double n, char *out)
{
	return scaled(n, 1000, thousands, 6, out);
}

const char *ctl_rate(double per_s, const char *unit, char *out)
{
	char number[CTL_CELL];

	if (!(per_s >= 0)) {
		snprintf(out, CTL_CELL, "-");
		return out;
	}
	if (per_s > 0 && per_s < 99.95)
		snprintf(number, sizeof(number), "%.1f", per_s);
	else
		scaled(per_s, 1000, thousands, 6, number);
	snprintf(out, CTL_CELL, "%.40s %s", number, unit);
	return out;
}

const char *ctl_age(double seconds, char *out)
{
	uint64_t s = seconds > 0 ? (uint64_t)seconds : 0;
	unsigned long long days = s / 86400, hours = s / 3600, minutes = s / 60;

	if (days)
		snprintf(out, CTL_CELL, "%llu d %02llu h", days, hours % 24);
	else if (hours)
		snprintf(out, CTL_CELL, "%llu h %02llu min", hours, minutes % 60);
	else if (minutes)
		snprintf(out, CTL_CELL, "%llu min %02llu s", minutes, (unsigned long long)s % 60);
	else
		snprintf(out, CTL_CELL, "%llu s", (unsigned long long)s);
	return out;
}

const char *ctl_share(double part, double whole, char *out)
{
	if (whole > 0)
		snprintf(out, CTL_CELL, "%.1f %%", 100 * part / whole);
	else
		snprintf(out, CTL_CELL, "-");
	return out;
}

const char *ctl_clean(const char *text, char *out)
{
	size_t n = 0;

	for (; *text != '\0' && n + 1 < CTL_CELL; text++)
		out[n++] = (unsigned char)*text < ' ' || (unsigned char)*text > 126 ? '?' : *text;
	out[n] = '\0';
	return out;
}
